"""Times some of a recipe's own steps on this machine's device, and measures its worst microbatch's memory.

Layers, token budget and step are the same as in training. The probe changes the adapter, which is then discarded.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from strop.data.store import SampleStore
from strop.errors import OutOfMemoryError
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, Microbatches
from strop.model.lora import LoraAdapter
from strop.recipe import Recipe
from strop.training.budget import tokens_that_fit, worst_microbatch
from strop.training.gradients import Gradients, choose_gradients, why_plain
from strop.training.optim import FlatOptimizer, choose_optimizer
from strop.training.step import StepInFlight, train_step

_STEPS, _RUNS = 8, 3
"""Different steps, and how often they are run: the first run compiles, the second captures, the third is timed."""

_PATIENCE = 20.0
"""Seconds after which the steps are not run again."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The measurements.

    Attributes:
        device: The driver's name for the GPU, or `CPU`.
        precision: Of the frozen weights.
        layers: `fused` or `plain`.
        memory_gib: The device's memory; 0 on a CPU.
        peak_gib: Peak reserved memory, worst microbatch included; 0 on a CPU.
        max_tokens: Token budget of a microbatch.
        step_seconds: Mean time of a step.
        token_seconds: Time per computed token without gradients.
        steps: Number of steps timed.
    """

    device: str
    precision: str
    layers: str
    memory_gib: float
    peak_gib: float
    max_tokens: int
    step_seconds: float
    token_seconds: float
    steps: int


def probe(recipe: Recipe, adapter: LoraAdapter, store: SampleStore) -> Probe:
    """Measure a recipe on the device where `adapter` is.

    Raises:
        OutOfMemoryError: The worst microbatch does not fit.
    """
    decoder, section = adapter.decoder, recipe.train
    decoder.gradient_checkpointing = section.gradient_checkpointing
    decoder.train()
    optimizer, gradients = choose_optimizer(adapter, section), choose_gradients(adapter)
    longest, device = int(store.lengths.max()), decoder.device
    budget = section.max_tokens_per_microbatch or tokens_that_fit(gradients, device, longest)
    share = recipe.lora.lora_dropout == 0
    order = Order.of(section, len(store))
    microbatches = Microbatches(store, order, budget, share, decoder.config.rope.long_from)
    steps = [microbatches.of_step(step) for step in range(min(_STEPS, order.num_steps))]
    largest = max(max(sum(batch.num_tokens for batch in step), longest) for step in steps)
    try:
        gradients.of([worst_microbatch(max(longest, min(budget, largest)), longest)], scale=1.0)
        step_seconds = _time(lambda: _train(gradients, optimizer, steps)) / len(steps)
        evaluation_seconds = _time(lambda: _evaluate(gradients, steps[0]))
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a microbatch of {budget} tokens does not fit on this GPU; lower train.max_tokens_per_microbatch"
        ) from error
    is_gpu = device.type == "cuda"
    return Probe(
        device=torch.cuda.get_device_name(device) if is_gpu else "CPU",
        precision=decoder.precision,
        layers="plain" if why_plain(adapter) else "fused",
        memory_gib=torch.cuda.get_device_properties(device).total_memory / 2**30 if is_gpu else 0.0,
        peak_gib=torch.cuda.max_memory_reserved(device) / 2**30 if is_gpu else 0.0,
        max_tokens=budget,
        step_seconds=step_seconds,
        token_seconds=evaluation_seconds / sum(batch.num_tokens for batch in steps[0]),
        steps=len(steps),
    )


def _time(run: Callable[[], None]) -> float:
    """Seconds of the last run: the third, or an earlier one if they take too long."""
    began = time.perf_counter()
    for _ in range(_RUNS):
        started = time.perf_counter()
        run()
        ended = time.perf_counter()
        if ended - began > _PATIENCE:
            break
    return ended - started


def _train(gradients: Gradients, optimizer: FlatOptimizer, steps: Sequence[list[Microbatch]]) -> None:
    """Train the steps as a run does: one is in flight while the host launches the next."""
    in_flight: StepInFlight | None = None
    for microbatches in steps:
        launched = train_step(gradients, optimizer, microbatches, learning_rate=0.0, max_grad_norm=1.0)
        if in_flight is not None:
            in_flight.result()
        in_flight = launched
    assert in_flight is not None
    in_flight.result()


def _evaluate(gradients: Gradients, microbatches: list[Microbatch]) -> None:
    for microbatch in microbatches:
        gradients.nll_of(microbatch).item()
