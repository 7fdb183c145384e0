"""What a step asks of its parts, and what it says of itself; that the parts are right is shown elsewhere."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from strop.data.store import Sample
from strop.microbatch.pack import Microbatch, pack
from strop.parallel.team import Team
from strop.training.loss import NonFiniteError
from strop.training.step import StepResult, train_step

T = TypeVar("T")
HEADER = list(range(20, 50))


class Parts:
    """Stands for gradients and optimizer: keeps what it is asked for."""

    device = torch.device("cpu")

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.asked = losses, {}

    def of(
        self, microbatches: Sequence[Microbatch], scale: float, check_stop: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        check_stop()
        self.asked["scale"] = scale
        return torch.tensor(self.losses), torch.full((3,), 2.0)

    def update(self, grad: Tensor, loss: Tensor, learning_rate: float, max_grad_norm: float) -> Tensor:
        self.asked |= {"grad": grad.tolist(), "loss": loss.item(), "rate": learning_rate, "limit": max_grad_norm}
        return torch.tensor(3.5, dtype=torch.float64)


def microbatches() -> list[Microbatch]:
    """Two: two samples behind one header of 30 tokens, with 3 learned tokens, and one sample of 50 with 5."""
    rows = [([*HEADER, 1, 2], 1), ([*HEADER, 3, 4], 2), (list(range(60, 110)), 5)]
    samples = [Sample(np.array(ids, np.int32), np.arange(len(ids)) >= len(ids) - learned) for ids, learned in rows]
    return pack(samples, [7, 8, 9], 50)


def test_the_sum_of_all_microbatches_is_one_step() -> None:
    batches, parts, calls = microbatches(), Parts([1.0, 0.25]), []
    assert [batch.num_tokens for batch in batches] == [34, 50]
    step = train_step(parts, parts, batches, 1e-3, 0.5, lambda: calls.append(1))  # type: ignore[arg-type]
    assert parts.asked == {"scale": 1 / 8, "grad": [2.0] * 3, "loss": 1.25, "rate": 1e-3, "limit": 0.5}
    assert calls == [1]
    assert step.is_done
    result = step.result()
    assert (result.loss, result.grad_norm) == (1.25, 3.5)
    assert (result.num_samples, result.num_tokens, result.num_executed_tokens) == (3, 114, 84)
    assert result.num_loss_tokens == 8
    assert 0 < result.seconds < 60
    assert result.peak_memory_gib is None


class TwoAlike(Team):
    """Two ranks that compute the same."""

    size = 2

    def each(self, compute: Callable[[], T]) -> list[T]:
        return [compute(), compute()]

    def sum_up(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            tensor.mul_(2)


def test_losses_and_gradients_of_all_ranks_are_summed_before_the_update() -> None:
    parts = Parts([1.0, 0.25])
    step = train_step(
        *(parts, parts, microbatches(), 1e-3, 0.5),  # type: ignore[arg-type]
        num_loss_tokens=16,
        team=TwoAlike(),
    )
    assert parts.asked == {"scale": 1 / 16, "grad": [4.0] * 3, "loss": 2.5, "rate": 1e-3, "limit": 0.5}
    result = step.result()
    assert (result.loss, result.grad_norm) == (2.5, 3.5)
    assert (result.num_samples, result.num_tokens, result.num_executed_tokens) == (6, 228, 168)
    assert result.num_loss_tokens == 16
    assert len(result.rank_seconds) == 2
    assert max(result.rank_seconds) <= result.seconds
    assert result.record(1, 1e-4, None).rank_seconds is not None


def test_a_microbatch_whose_loss_is_not_finite_is_named() -> None:
    parts = Parts([1.0, float("nan")])
    step = train_step(parts, parts, microbatches(), 1e-3, 0.5)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="the loss is nan") as caught:
        step.result()
    assert caught.value.samples == (9,)


def test_a_steps_record_has_its_rates() -> None:
    result = StepResult(
        loss=2.5, grad_norm=0.5, num_samples=8, num_tokens=400, num_executed_tokens=300, num_loss_tokens=40, seconds=4.0
    )
    record = result.record(step=3, learning_rate=1e-4, dollars=None)
    assert (record.step, record.loss, record.grad_norm, record.learning_rate) == (3, 2.5, 0.5, 1e-4)
    assert (record.num_tokens, record.num_executed_tokens, record.num_loss_tokens) == (400, 300, 40)
    assert record.tokens_per_second == 100.0
    assert record.samples_per_second == 2.0
    assert record.dollars is None
