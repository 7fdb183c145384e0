"""What must not change a training step: packing, microbatches, accumulation and order. In float64, to 1e-12."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strop.data.store import Sample
from strop.microbatch.pack import Microbatch, PackedInputs, pack
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import TrainSection
from strop.training.gradients import PlainGradients
from strop.training.optim import FlatAdamW
from strop.training.step import NonFiniteError, train_step
from tiny_models import write_checkpoint
from training_doubles import adapter_with_b

BOUND = 1e-12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture
def adapter(folder: Path) -> LoraAdapter:
    return adapter_with_b(folder)


def samples(count: int = 16) -> list[Sample]:
    """Rows of 2 to 30 tokens, every other one after a common header, of which very different shares are learned."""
    random = np.random.default_rng(0)
    header = random.integers(3, 128, 17)
    made = []
    for i in range(count):
        ids = random.integers(3, 128, random.integers(2, 31)).astype(np.int32)
        if i % 2:
            ids = np.concatenate([header, ids]).astype(np.int32)
        learned = random.random(len(ids)) < random.random()
        learned[-1] = True
        made.append(Sample(ids, learned))
    return made


def batches(rows: Sequence[Sample], groups: Sequence[Sequence[int]]) -> list[Microbatch]:
    """Each group as one microbatch, in its order and with nothing shared."""
    return [batch for group in groups for batch in pack([rows[i] for i in group], group, 10_000, share=False)]


def gradient(adapter: LoraAdapter, parts: list[Microbatch]) -> torch.Tensor:
    adapter.flat_grad.zero_()
    count = sum(batch.num_loss_tokens for batch in parts)
    for batch in parts:
        (adapter.decoder.nll_sum(PackedInputs.of(batch, adapter.decoder.device)) / count).backward()
    return adapter.flat_grad.clone()


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def test_packed_equals_separate(adapter: LoraAdapter) -> None:
    rows = samples()
    one_by_one = gradient(adapter, batches(rows, [[i] for i in range(16)]))
    assert error(gradient(adapter, batches(rows, [range(16)])), one_by_one) < BOUND


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [30, 47, 90, 150, 10_000])
def test_any_token_budget(adapter: LoraAdapter, budget: int, share: bool) -> None:
    rows = samples()
    whole = gradient(adapter, batches(rows, [range(16)]))
    assert error(gradient(adapter, pack(rows, range(16), budget, share=share)), whole) < BOUND


@pytest.mark.parametrize("microbatch", [1, 2, 4, 8, 16])
def test_any_microbatch_and_accumulation(adapter: LoraAdapter, microbatch: int) -> None:
    rows = samples()
    whole = gradient(adapter, batches(rows, [range(16)]))
    parts = batches(rows, [range(i, i + microbatch) for i in range(0, 16, microbatch)])
    assert error(gradient(adapter, parts), whole) < BOUND


def test_mean_of_means_is_not_the_same(adapter: LoraAdapter) -> None:
    """The control: dividing each microbatch by its own count, as trainers did for years, is far off."""
    rows = samples()
    whole = gradient(adapter, batches(rows, [range(16)]))
    adapter.flat_grad.zero_()
    for batch in batches(rows, [range(i, i + 4) for i in range(0, 16, 4)]):
        inputs = PackedInputs.of(batch, adapter.decoder.device)
        (adapter.decoder.nll_sum(inputs) / batch.num_loss_tokens / 4).backward()
    assert error(adapter.flat_grad, whole) > 1e-3


def test_any_order_within_a_step(adapter: LoraAdapter) -> None:
    rows = samples()
    whole = gradient(adapter, batches(rows, [range(16)]))
    order = np.random.default_rng(1).permutation(16).tolist()
    assert error(gradient(adapter, batches(rows, [order])), whole) < BOUND


def test_checkpointing_changes_nothing(adapter: LoraAdapter) -> None:
    parts = batches(samples(), [range(16)])
    whole = gradient(adapter, parts)
    adapter.decoder.gradient_checkpointing = True
    assert torch.equal(gradient(adapter, parts), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_samples_do_not_see_each_other(folder: Path, dtype: torch.dtype) -> None:
    """Change one sample's tokens: no bit of another's logits may move."""
    decoder = load_decoder(folder, dtype)
    lengths = (9, 1, 14, 5)
    ids = torch.randint(3, 128, (sum(lengths),))
    before = logits(decoder, ids, lengths)
    for changed, (first, last) in enumerate([(0, 9), (9, 10), (10, 24), (24, 29)]):
        other = ids.clone()
        other[first:last] = (other[first:last] + 17) % 128
        after = logits(decoder, other, lengths)
        same = torch.ones(len(ids), dtype=torch.bool)
        same[first:last] = False
        assert torch.equal(after[same], before[same])
        assert not torch.equal(after[~same], before[~same]), changed
    as_one = logits(decoder, ids, (sum(lengths),))
    assert not torch.equal(as_one[9:], before[9:])


def logits(decoder: Decoder, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.packed_hidden_states(ids, Tree.of(lengths)))


def test_a_step_leaves_the_base_alone(adapter: LoraAdapter) -> None:
    before = {name: buffer.clone() for name, buffer in adapter.decoder.named_buffers()}
    flat = adapter.flat.clone()
    optimizer = FlatAdamW(adapter, TrainSection())
    rows = samples()
    result = train_step(PlainGradients(adapter), optimizer, pack(rows, range(16), 10_000), 1e-3, 1.0).result()
    assert all(torch.equal(before[name], buffer) for name, buffer in adapter.decoder.named_buffers())
    assert not torch.equal(flat, adapter.flat)
    assert result.grad_norm > 0
    assert result.num_samples == 16
    assert result.num_tokens == sum(len(row.input_ids) for row in rows)
    assert result.num_executed_tokens == result.num_tokens - 7 * 17  # the header of eight rows, once


class Spoilt(PlainGradients):
    """One step's gradients or losses are not numbers; those of all others are sound."""

    what: str | None = None

    def of(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses, grad = super().of(*arguments)
        if self.what == "gradient":
            grad[3] = float("inf")
        return losses * float("nan") if self.what == "loss" else losses, grad


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_follows_a_step_that_is_not_finite(adapter: LoraAdapter, what: str) -> None:
    gradients, optimizer = Spoilt(adapter), FlatAdamW(adapter, TrainSection())
    batches = pack(samples(), range(16), 10_000)

    def state() -> list[torch.Tensor]:
        return [adapter.flat.clone(), *optimizer.state().values()]

    train_step(gradients, optimizer, batches, 1e-3, 1.0).result()
    before = state()
    gradients.what = what
    failed = train_step(gradients, optimizer, batches, 1e-3, 1.0)
    gradients.what = None
    later = train_step(gradients, optimizer, batches, 1e-3, 1.0)
    with pytest.raises(NonFiniteError, match="loss" if what == "loss" else "gradient norm") as caught:
        failed.result()
    assert sorted(caught.value.samples) == list(range(16))
    assert later.result().grad_norm > 0
    assert all(torch.equal(a, b) for a, b in zip(state(), before, strict=True))
    fresh = FlatAdamW(adapter, TrainSection())  # the control: without the failure the same step updates
    train_step(gradients, fresh, batches, 1e-3, 1.0).result()
    assert not torch.equal(adapter.flat, before[0])
