"""A step's losses and gradient: of the sum over its tokens times one factor, anew for each step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from strop.data.store import Sample
from strop.errors import Interrupted
from strop.microbatch.pack import Microbatch, PackedInputs, pack
from strop.model.lora import LoraAdapter
from strop.training.gradients import PlainGradients
from training_doubles import adapter_with_b


@pytest.fixture
def adapter(model: Path) -> LoraAdapter:
    return adapter_with_b(model)


def step(seed: int) -> list[Microbatch]:
    """Three microbatches, with 1, 12 and 4 learned tokens."""
    random = np.random.default_rng(seed)
    rows = [(13, 1), (13, 12), (5, 4)]
    samples = [Sample(random.integers(3, 128, n).astype(np.int32), np.arange(n) >= n - k) for n, k in rows]
    batches = pack(samples, range(3), 13, share=False)
    assert [batch.num_loss_tokens for batch in batches] == [1, 12, 4]
    return batches


def alone(adapter: LoraAdapter, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A microbatch's sum of -log p, and its gradient."""
    nll = adapter.decoder.nll_sum(PackedInputs.of(batch, torch.device("cpu")))
    parameters = adapter._parameters
    grads = torch.autograd.grad(nll, parameters)
    return nll.detach(), torch.cat([grad.reshape(-1) for grad in grads])


def test_microbatches_add_up_and_steps_do_not(adapter: LoraAdapter) -> None:
    gradients = PlainGradients(adapter)
    for seed in (0, 1):
        batches = step(seed)
        want = [alone(adapter, batch) for batch in batches]
        losses, grad = gradients.of(batches, 0.25)
        assert losses.shape == (3,)
        assert not losses.requires_grad
        assert torch.allclose(losses, 0.25 * torch.stack([nll for nll, _ in want]), rtol=1e-12)
        total = 0.25 * sum(each for _, each in want)
        assert (grad - total).norm() < 1e-12 * total.norm()


def test_the_loss_of_a_microbatch_is_a_sum(adapter: LoraAdapter) -> None:
    [batch, *_] = step(0)
    assert PlainGradients(adapter).nll_of(batch).item() == pytest.approx(alone(adapter, batch)[0].item(), rel=1e-12)


def test_it_can_be_stopped_before_each_microbatch(adapter: LoraAdapter) -> None:
    asked: list[int] = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        PlainGradients(adapter).of(step(0), 1.0, stop)
    assert len(asked) == 2
