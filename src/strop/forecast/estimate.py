"""A run's memory, speed, time and dollars on one kind of GPU, from shapes and the published measurements."""

from dataclasses import dataclass, field
from typing import Any

from strop.data.store import SampleStore
from strop.errors import RecipeError
from strop.forecast.memory import CONTEXT_GIB, GIB, Memory
from strop.forecast.probe import Probe
from strop.forecast.published import GPU as MEASURED_GPU
from strop.forecast.speed import EVALUATION, Speed
from strop.forecast.workload import Shape, Workload, count_workload
from strop.gpus import GPUS, Gpu, parse_gpu
from strop.modal_runs.prices import Prices
from strop.model.config import DecoderConfig
from strop.model.precision import Precision, choose_precision, why_not_fused
from strop.recipe import Recipe
from strop.run.manifest import Estimate
from strop.training.budget import tokens_within, wanted_tokens

START_SECONDS = 60.0
"""From a container's start to the first step: 12 to 13 s with warm caches on an H200; a cold one was not measured."""

SAVE_SECONDS_PER_PARAMETER = 2.0 / 30e6
"""A checkpoint of 3 x 30 million floats takes 2.0 s."""

EXCHANGE_SECONDS, SUM_BYTES_PER_SECOND = 1e-3, 300e9
"""Of several GPUs in one machine, joined by NVLink: 120 MB took 0.45 ms on two H200. Others are slower, and guessed."""

_MEASURED, _SAME_GPU, _SAME_KERNELS, _UNTRIED = (0.9, 1.15), (0.85, 1.25), (0.7, 1.4), (0.5, 2.0)
"""Factors on a predicted time, from best to worst; docs/plan.md says how they were found."""


@dataclass
class PlannedRun:
    """The run to plan: a recipe on a model's shape and the user's samples."""

    recipe: Recipe
    config: DecoderConfig
    train: SampleStore
    held_out: SampleStore | None
    _counted: dict[tuple[int, int], Workload] = field(default_factory=dict)

    def workload(self, budget: int, ranks: int = 1) -> Workload:
        """What one of some ranks computes under a token budget; many kinds of GPU share one budget."""
        key = budget, ranks
        if key not in self._counted:
            counted = count_workload(self.recipe, self.config, self.train, self.held_out, budget, ranks)
            self._counted[key] = counted
        return self._counted[key]

    @property
    def shape(self) -> Shape:
        """The model and its adapter as counts."""
        return Shape(self.config, self.recipe.lora)

    @property
    def longest_sample(self) -> int:
        """Length of the longest training sample, in tokens."""
        return int(self.train.lengths.max())


def _held(chosen: Precision) -> str:
    """The name of a precision in the tables of memory and speed."""
    if chosen.float8:
        return "float8"  # weights rounded to NF4 beforehand take as much
    dtype = str(chosen.dtype).removeprefix("torch.")
    return dtype if not chosen.nf4 else "nf4" if dtype == "bfloat16" else f"nf4, {dtype}"


def scaled(run: PlannedRun, gpu: str, prices: Prices) -> Estimate:
    """The prediction for one of Modal's GPUs, such as H200 or H100:2, from shapes and published figures."""
    kind, ranks = parse_gpu(gpu)
    card, recipe, shape = GPUS[kind], run.recipe, run.shape
    against = why_not_fused(run.config, recipe.lora, card)
    try:
        chosen = choose_precision(recipe.model.precision, card, against, recipe.model.load_in_4bit)
    except RecipeError as error:
        return Estimate(gpu, "scaled", problem=str(error), memory_gib=card.memory_gib)
    precision = _held(chosen)
    fused = against is None and not precision.endswith("float32")
    checkpointing = recipe.train.gradient_checkpointing
    memory = Memory.of(shape, precision, fused, checkpointing, recipe.train.optim == "adamw_8bit")
    if not memory.holds(card.memory_gib, run.longest_sample):
        return Estimate(gpu, "scaled", problem=_too_large(run, memory), precision=precision, memory_gib=card.memory_gib)
    budget = _budget(run, card, memory)
    workload = run.workload(budget, ranks)
    speed = Speed.of(shape, card, precision, fused, checkpointing)
    steps = [sum(map(speed.seconds, step)) + _exchange(shape, ranks) for step in workload.steps]
    evaluation = EVALUATION * sum(map(speed.seconds, workload.held_out)) / workload.held_out_share
    reserved = memory.peak_gib(workload.largest.tokens, workload.largest.learned)
    return _estimate(
        run,
        workload,
        prices,
        gpu=gpu,
        source="scaled",
        precision=precision,
        layers="fused" if fused else "plain",
        memory_gib=card.memory_gib,
        peak_gib=min(reserved, card.memory_gib - CONTEXT_GIB),
        max_tokens=budget,
        step_seconds=sum(steps) / len(steps),
        evaluation_seconds=evaluation,
        range=_range(card, fused),
    )


def measured(run: PlannedRun, gpu: str, found: Probe, prices: Prices) -> Estimate:
    """The prediction for this machine's device, which `prices` may know as `gpu`, from a probe."""
    workload = run.workload(found.max_tokens)
    held_out = sum(load.tokens for load in workload.held_out) / workload.held_out_share
    return _estimate(
        run,
        workload,
        prices,
        gpu=gpu,
        source="measured",
        precision=found.precision,
        layers=found.layers,
        memory_gib=found.memory_gib,
        peak_gib=found.peak_gib,
        max_tokens=found.max_tokens,
        step_seconds=found.step_seconds,
        evaluation_seconds=held_out * found.token_seconds,
        range=_MEASURED,
    )


def _estimate(
    run: PlannedRun,
    workload: Workload,
    prices: Prices,
    *,
    gpu: str,
    step_seconds: float,
    evaluation_seconds: float,
    **fields: Any,
) -> Estimate:
    """An estimate from the seconds of a step and of an evaluation."""
    whole = run.workload(fields["max_tokens"])
    loads = [load for step in whole.steps for load in step]
    steps = len(whole.steps)
    save = SAVE_SECONDS_PER_PARAMETER * run.shape.lora_parameters
    training = workload.num_steps * step_seconds + workload.saves * save
    seconds = START_SECONDS + training + workload.evaluations * evaluation_seconds
    return Estimate(
        gpu=gpu,
        samples_per_second=sum(load.samples for load in loads) / steps / step_seconds,
        tokens_per_second=sum(load.sample_tokens for load in loads) / steps / step_seconds,
        training_seconds=training,
        seconds=seconds,
        dollars=seconds * prices.per_second(gpu) if parse_gpu(gpu)[0] in prices.gpu else None,
        **fields,
    )


def _exchange(shape: Shape, ranks: int) -> float:
    """Seconds of a step in which ranks sum the gradient and tell each other how they are."""
    return 0.0 if ranks == 1 else EXCHANGE_SECONDS + 2 * 4 * shape.lora_parameters / SUM_BYTES_PER_SECOND


def _range(card: Gpu, fused: bool) -> tuple[float, float]:
    if not fused or card.capability != GPUS[MEASURED_GPU].capability:
        return _UNTRIED
    return _SAME_GPU if card.name == MEASURED_GPU else _SAME_KERNELS


def _budget(run: PlannedRun, card: Gpu, memory: Memory) -> int:
    """The token budget of a microbatch that training would choose there."""
    if asked := run.recipe.train.max_tokens_per_microbatch:
        return asked
    wanted = wanted_tokens(card, run.longest_sample)
    each = memory.token + memory.learned
    return tokens_within(memory.free(card.memory_gib), 0.5 * GIB, each, wanted, run.longest_sample)


def _too_large(run: PlannedRun, memory: Memory) -> str:
    least = memory.constant / GIB + CONTEXT_GIB
    one = (memory.token + memory.learned) * run.longest_sample / GIB
    return f"needs {least + one + 1:.0f} GiB: {least:.1f} for the model, {one:.1f} for the longest sample"


@dataclass(frozen=True, slots=True)
class Plan:
    """Estimates of a recipe on every GPU.

    Attributes:
        lines: One for each of Modal's GPUs, and one for this machine's device if it is not among them.
        own: The estimate for the recipe's own GPU, the first of `modal.gpu`.
        here: The estimate measured on this machine; None if nothing was measured.
        workload: What the run computes on the recipe's own GPU, or on the first that can train it.
        samples_per_step: The batch size.
        num_samples: Of an epoch.
        prices: The price list.
    """

    lines: tuple[Estimate, ...]
    own: Estimate
    here: Estimate | None
    workload: Workload
    samples_per_step: int
    num_samples: int
    prices: Prices


def plan_of(run: PlannedRun, prices: Prices, here: Estimate | None) -> Plan:
    """Estimate a run on all GPUs, on the recipe's own with its count.

    Args:
        run: The run to plan.
        prices: The price list.
        here: The estimate measured on this machine, which replaces its GPU's.
    """
    asked = {parse_gpu(gpu)[0]: gpu for gpu in reversed(run.recipe.modal.gpu)}
    first = parse_gpu(run.recipe.modal.gpu[0])[0]
    lines = {kind: scaled(run, asked.get(kind, kind), prices) for kind in GPUS}
    if here is not None:
        kind = parse_gpu(here.gpu)[0]
        is_the_same = kind not in lines or lines[kind].gpu == here.gpu  # and not several of it
        lines[kind if is_the_same else f"{kind}, here"] = here
    own = lines[first]
    sound = [line for line in (own, *lines.values()) if line.problem is None]
    budget = sound[0].max_tokens if sound else run.longest_sample
    each, samples = run.recipe.train.samples_per_step, len(run.train)
    return Plan(tuple(lines.values()), own, here, run.workload(budget), each, samples, prices)
