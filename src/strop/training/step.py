"""One optimizer step: microbatches -> gradients -> clip -> update."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.microbatch.pack import Microbatch
from strop.run.records import TrainRecord
from strop.training.gradients import Gradients
from strop.training.loss import refuse_non_finite, token_weight
from strop.training.optim import FlatOptimizer


@dataclass(frozen=True, slots=True)
class StepResult:
    """Measurements of a step.

    Attributes:
        loss: Mean -log p over the learned tokens of the whole step, before the update.
        grad_norm: L2 norm of the gradient before clipping.
        num_samples: Samples in the step.
        num_tokens: Tokens of the samples.
        num_executed_tokens: Tokens computed; a prefix that samples of a microbatch share counts once.
        num_loss_tokens: Learned tokens.
        seconds: Time on the device, from the first microbatch to the update.
        peak_memory_gib: Peak GPU memory allocated by tensors so far; None on a CPU.
    """

    loss: float
    grad_norm: float
    num_samples: int
    num_tokens: int
    num_executed_tokens: int
    num_loss_tokens: int
    seconds: float
    peak_memory_gib: float | None = None

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
            dollars=dollars,
        )


class _Clock:
    """Times the work queued on a device between construction and `stop`; on a GPU, with the GPU's own events."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._times = [time.perf_counter()]
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        """Call once the last work has been queued."""
        self._times.append(time.perf_counter())
        if self._events:
            self._events[1].record()

    @property
    def has_run_out(self) -> bool:
        """Whether the device has finished the work."""
        return not self._events or self._events[1].query()

    def seconds(self) -> float:
        """Wait for the device; returns how long the work took."""
        if not self._events:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3

    def peak_memory_gib(self) -> float | None:
        """Peak GPU memory allocated by tensors so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) / 2**30 if self._events else None


class StepInFlight:
    """A step queued on the device, perhaps still running: each microbatch's part of the loss, and the gradient norm."""

    def __init__(self, microbatches: Sequence[Microbatch], losses: Tensor, grad_norm: Tensor, clock: _Clock) -> None:
        self._microbatches, self._clock = microbatches, clock
        numbers = torch.cat([losses, grad_norm.to(losses.dtype).view(1)])
        self._numbers = numbers.to("cpu", non_blocking=True)
        clock.stop()

    @property
    def is_done(self) -> bool:
        """Whether the result is available without waiting."""
        return self._clock.has_run_out

    def result(self) -> StepResult:
        """Wait for the step.

        Raises:
            NonFiniteError: Neither this step nor any later one updated anything.
        """
        seconds = self._clock.seconds()
        *losses, grad_norm = self._numbers.tolist()
        microbatches = self._microbatches
        refuse_non_finite(losses, grad_norm, microbatches)
        return StepResult(
            loss=sum(losses),
            grad_norm=grad_norm,
            num_samples=sum(len(microbatch.samples) for microbatch in microbatches),
            num_tokens=sum(microbatch.num_sample_tokens for microbatch in microbatches),
            num_executed_tokens=sum(microbatch.num_tokens for microbatch in microbatches),
            num_loss_tokens=sum(microbatch.num_loss_tokens for microbatch in microbatches),
            seconds=seconds,
            peak_memory_gib=self._clock.peak_memory_gib(),
        )


def train_step(
    gradients: Gradients,
    optimizer: FlatOptimizer,
    microbatches: Sequence[Microbatch],
    learning_rate: float,
    max_grad_norm: float,
    check_stop: Callable[[], None] = lambda: None,
) -> StepInFlight:
    """Update the adapter once, without waiting for a GPU.

    The loss is the sum over all microbatches divided by the learned tokens in all of them, so the way samples are
    divided into microbatches changes nothing but rounding.

    If a loss or gradient is not finite, the device itself skips this update and all later ones; `StepInFlight.result`
    tells the host.

    Args:
        gradients: Computes the gradients of the model being trained.
        optimizer: Holds the adapter's parameters.
        microbatches: All of the step's.
        learning_rate: Of this step.
        max_grad_norm: The gradient is scaled down to this norm; 0 turns clipping off.
        check_stop: Called before each microbatch; may raise to abandon the step.
    """
    clock = _Clock(gradients.device)
    losses, grad = gradients.of(microbatches, token_weight(microbatches), check_stop)
    grad_norm = optimizer.update(grad, losses.sum(), learning_rate, max_grad_norm)
    return StepInFlight(microbatches, losses, grad_norm, clock)
