"""One optimizer step: microbatches -> gradients -> clip -> update."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.microbatch.pack import Microbatch
from strop.parallel.team import ALONE, Team
from strop.run.records import TrainRecord
from strop.training.gradients import Gradients
from strop.training.loss import is_finite, refuse_non_finite, token_weight
from strop.training.optim import FlatOptimizer


@dataclass(frozen=True, slots=True)
class StepResult:
    """Measurements of a step, over all ranks.

    Attributes:
        loss: Mean -log p over the learned tokens of the whole step, before the update.
        grad_norm: L2 norm of the gradient before clipping.
        num_samples: Samples in the step.
        num_tokens: Tokens of the samples.
        num_executed_tokens: Tokens computed; a prefix that samples of a microbatch share counts once.
        num_loss_tokens: Learned tokens.
        seconds: Time on the slowest device, from the first microbatch to the update.
        peak_memory_gib: Peak GPU memory allocated by tensors so far, on the fullest GPU; None on a CPU.
        rank_seconds: Of each rank, the part of `seconds` that its own microbatches took; empty for one rank.
    """

    loss: float
    grad_norm: float
    num_samples: int
    num_tokens: int
    num_executed_tokens: int
    num_loss_tokens: int
    seconds: float
    peak_memory_gib: float | None = None
    rank_seconds: tuple[float, ...] = ()

    def record(self, step: int, learning_rate: float, dollars: float | None) -> TrainRecord:
        """The step's line in metrics.jsonl.

        Args:
            step: Counted from 1.
            learning_rate: Of this step.
            dollars: Cost of the run so far; None if nothing is billed.
        """
        return TrainRecord(
            step=step,
            loss=self.loss,
            learning_rate=learning_rate,
            grad_norm=self.grad_norm,
            num_tokens=self.num_tokens,
            num_executed_tokens=self.num_executed_tokens,
            num_loss_tokens=self.num_loss_tokens,
            tokens_per_second=self.num_tokens / self.seconds,
            samples_per_second=self.num_samples / self.seconds,
            peak_memory_gib=self.peak_memory_gib,
            rank_seconds=[round(seconds, 5) for seconds in self.rank_seconds] or None,
            dollars=dollars,
        )


class _Clock:
    """Times the work queued on a device since construction, up to each `mark`; on a GPU, with the GPU's own events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event | float] = []
        self.mark()

    def mark(self) -> None:
        """Call once the work to be timed has been queued."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    @property
    def has_run_out(self) -> bool:
        """Whether the device has finished the work."""
        last = self._marks[-1]
        return isinstance(last, float) or last.query()

    def seconds(self) -> list[float]:
        """Wait for the device; returns how long the work up to each mark took."""
        first, *marks = self._marks
        if isinstance(first, float):
            return [mark - first for mark in marks if isinstance(mark, float)]
        events = [mark for mark in marks if not isinstance(mark, float)]
        events[-1].synchronize()
        return [float(first.elapsed_time(event)) / 1e3 for event in events]

    def peak_memory_gib(self) -> float | None:
        """Peak GPU memory allocated by tensors so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank knows of a step.

    Attributes:
        losses: Each of its microbatches' part of the loss.
        grad_norm: The same on all ranks.
        counts: Samples, tokens, computed tokens and learned tokens.
        seconds: Until its own gradients were there, and until the update.
        samples: Of each microbatch, if any of its numbers is not finite, else empty.
    """

    losses: list[float]
    grad_norm: float
    counts: tuple[int, int, int, int]
    seconds: list[float]
    peak_memory_gib: float | None
    samples: list[tuple[int, ...]]


class StepInFlight:
    """A step queued on the device, perhaps still running: each microbatch's part of the loss, and the gradient norm."""

    def __init__(
        self, microbatches: Sequence[Microbatch], losses: Tensor, grad_norm: Tensor, clock: _Clock, team: Team
    ) -> None:
        self._microbatches, self._clock, self._team = microbatches, clock, team
        numbers = torch.cat([losses, grad_norm.to(losses.dtype).view(1)])
        self._numbers = numbers.to("cpu", non_blocking=True)
        clock.mark()

    @property
    def is_done(self) -> bool:
        """Whether the result is available without waiting."""
        return self._clock.has_run_out

    def result(self) -> StepResult:
        """Wait for the step, on all ranks.

        Raises:
            NonFiniteError: Neither this step nor any later one updated anything.
        """
        parts = self._team.each(self._part)
        losses = [loss for part in parts for loss in part.losses]
        refuse_non_finite(losses, parts[0].grad_norm, [each for part in parts for each in part.samples])
        samples, tokens, executed, learned = (
            sum(counts) for counts in zip(*(part.counts for part in parts), strict=True)
        )
        return StepResult(
            loss=sum(losses),
            grad_norm=parts[0].grad_norm,
            num_samples=samples,
            num_tokens=tokens,
            num_executed_tokens=executed,
            num_loss_tokens=learned,
            seconds=max(part.seconds[1] for part in parts),
            peak_memory_gib=max((part.peak_memory_gib for part in parts if part.peak_memory_gib), default=None),
            rank_seconds=tuple(part.seconds[0] for part in parts) if len(parts) > 1 else (),
        )

    def _part(self) -> _Part:
        seconds = self._clock.seconds()
        *losses, grad_norm = self._numbers.tolist()
        microbatches = self._microbatches
        is_sound = all(map(is_finite, (*losses, grad_norm)))
        return _Part(
            losses,
            grad_norm,
            counts=(
                sum(len(microbatch.samples) for microbatch in microbatches),
                sum(microbatch.num_sample_tokens for microbatch in microbatches),
                sum(microbatch.num_tokens for microbatch in microbatches),
                sum(microbatch.num_loss_tokens for microbatch in microbatches),
            ),
            seconds=seconds,
            peak_memory_gib=self._clock.peak_memory_gib(),
            samples=[() if is_sound else microbatch.samples for microbatch in microbatches],
        )


def train_step(
    gradients: Gradients,
    optimizer: FlatOptimizer,
    microbatches: Sequence[Microbatch],
    learning_rate: float,
    max_grad_norm: float,
    check_stop: Callable[[], None] = lambda: None,
    *,
    num_loss_tokens: int | None = None,
    team: Team = ALONE,
) -> StepInFlight:
    """Update the adapter once, without waiting for a GPU.

    The loss is the sum over all microbatches of all ranks, divided by the learned tokens in all of them, so the way
    samples are divided into microbatches and among ranks changes nothing but rounding. Losses and gradients are summed
    over the ranks before anything is done with them, so clip, finite check and update are the same on each.

    If a loss or gradient is not finite, the device itself skips this update and all later ones; `StepInFlight.result`
    tells the host.

    Args:
        gradients: Computes the gradients of the model being trained.
        optimizer: Holds the adapter's parameters.
        microbatches: All of the step's that this rank computes; perhaps none.
        learning_rate: Of this step.
        max_grad_norm: The gradient is scaled down to this norm; 0 turns clipping off.
        check_stop: Called before each microbatch; may raise to abandon the step.
        num_loss_tokens: Learned tokens of the step on all ranks; by default those of `microbatches`.
        team: The ranks.
    """
    clock = _Clock(gradients.device)
    if num_loss_tokens is None:
        num_loss_tokens = sum(microbatch.num_loss_tokens for microbatch in microbatches)
    with team.agreed():
        losses, grad = gradients.of(microbatches, token_weight(num_loss_tokens), check_stop)
    clock.mark()
    loss = losses.sum()
    team.sum_up(loss, grad)
    grad_norm = optimizer.update(grad, loss, learning_rate, max_grad_norm)
    return StepInFlight(microbatches, losses, grad_norm, clock, team)
