"""A run's memory, speed, time and dollars on one kind of GPU, from shapes and the published measurements."""

from dataclasses import dataclass, field
from typing import Any

from strop.data.store import SampleStore
from strop.errors import RecipeError
from strop.forecast.memory import CONTEXT_GIB, GIB, Memory
from strop.forecast.probe import Probe
from strop.forecast.published import GPU as MEASURED_GPU
from strop.forecast.shape import Shape
from strop.forecast.speed import EVALUATION, Speed
from strop.forecast.workload import Workload, count_workload
from strop.gpus import GPUS, Gpu, parse_gpu
from strop.modal_runs.prices import Prices
from strop.model.config import DecoderConfig
from strop.model.precision import Precision, choose_precision, why_not_fused
from strop.recipe import Recipe
from strop.run.manifest import Prediction
from strop.training.budget import tokens_within, wanted_tokens

START_SECONDS = 60.0
"""From a container's start to the first step: 12 to 13 s with warm caches on an H200; a cold one was not measured."""

SAVE_SECONDS_PER_PARAMETER = 2.0 / 30e6
"""A checkpoint of 3 x 30 million floats takes 2.0 s."""

_MEASURED, _SAME_GPU, _SAME_KERNELS, _UNTRIED = (0.9, 1.15), (0.85, 1.25), (0.7, 1.4), (0.5, 2.0)
"""Factors on a predicted time, from best to worst; docs/plan.md says how they came about."""


@dataclass
class Job:
    """What is to be run: a recipe on a model's shape and the user's samples."""

    recipe: Recipe
    config: DecoderConfig
    train: SampleStore
    held_out: SampleStore | None
    _counted: dict[int, Workload] = field(default_factory=dict)

    def workload(self, budget: int) -> Workload:
        """What it computes under a token budget; many GPUs have the same one."""
        if budget not in self._counted:
            self._counted[budget] = count_workload(self.recipe, self.config, self.train, self.held_out, budget)
        return self._counted[budget]

    @property
    def shape(self) -> Shape:
        """The model and its adapter as counts."""
        return Shape(self.config, self.recipe.lora)

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest training sample."""
        return int(self.train.lengths.max())


def _held(chosen: Precision) -> str:
    """The name of a precision in the tables of memory and speed."""
    if chosen.float8:
        return "float8"  # weights that were rounded to NF4 before take as much
    dtype = str(chosen.dtype).removeprefix("torch.")
    return dtype if not chosen.nf4 else "nf4" if dtype == "bfloat16" else f"nf4, {dtype}"


def scaled(job: Job, gpu: str, prices: Prices) -> Prediction:
    """The prediction for one of Modal's GPUs, such as H200 or H100:2, from shapes and published figures."""
    kind, _ = parse_gpu(gpu)
    card, recipe, shape = GPUS[kind], job.recipe, job.shape
    against = why_not_fused(job.config, recipe.lora, card)
    try:
        chosen = choose_precision(recipe.model.precision, card, against, recipe.model.load_in_4bit)
    except RecipeError as error:
        return Prediction(gpu, "scaled", problem=str(error), memory_gib=card.memory_gib)
    precision = _held(chosen)
    fused = against is None and not precision.endswith("float32")
    checkpointing = recipe.train.gradient_checkpointing
    memory = Memory.of(shape, precision, fused, checkpointing, recipe.train.optim == "adamw_8bit")
    if not memory.holds(card.memory_gib, job.longest_sample):
        return Prediction(
            gpu, "scaled", problem=_too_large(job, memory), precision=precision, memory_gib=card.memory_gib
        )
    budget = _budget(job, card, memory)
    workload = job.workload(budget)
    speed = Speed.of(shape, card, precision, fused, checkpointing)
    steps = [sum(map(speed.seconds, step)) for step in workload.steps]
    evaluation = EVALUATION * sum(map(speed.seconds, workload.held_out)) / workload.held_out_share
    reserved = memory.peak_gib(workload.largest.tokens, workload.largest.learned)
    return _line(
        job,
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


def measured(job: Job, gpu: str, found: Probe, prices: Prices) -> Prediction:
    """The prediction for this machine's device, which `prices` may know as `gpu`, from a probe."""
    workload = job.workload(found.max_tokens)
    held_out = sum(load.tokens for load in workload.held_out) / workload.held_out_share
    return _line(
        job,
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


def _line(
    job: Job,
    workload: Workload,
    prices: Prices,
    *,
    gpu: str,
    step_seconds: float,
    evaluation_seconds: float,
    **fields: Any,
) -> Prediction:
    """A line from the seconds of a step and of an evaluation."""
    loads = [load for step in workload.steps for load in step]
    steps = len(workload.steps)
    save = SAVE_SECONDS_PER_PARAMETER * job.shape.lora_parameters
    training = workload.num_steps * step_seconds + workload.saves * save
    seconds = START_SECONDS + training + workload.evaluations * evaluation_seconds
    return Prediction(
        gpu=gpu,
        samples_per_second=sum(load.samples for load in loads) / steps / step_seconds,
        tokens_per_second=sum(load.sample_tokens for load in loads) / steps / step_seconds,
        training_seconds=training,
        seconds=seconds,
        dollars=seconds * prices.per_second(gpu) if parse_gpu(gpu)[0] in prices.gpu else None,
        **fields,
    )


def _range(card: Gpu, fused: bool) -> tuple[float, float]:
    if not fused or card.capability != GPUS[MEASURED_GPU].capability:
        return _UNTRIED
    return _SAME_GPU if card.name == MEASURED_GPU else _SAME_KERNELS


def _budget(job: Job, card: Gpu, memory: Memory) -> int:
    """The tokens of a microbatch as training would choose them there."""
    if asked := job.recipe.train.max_tokens_per_microbatch:
        return asked
    wanted = wanted_tokens(card, job.longest_sample)
    each = memory.token + memory.learned
    return tokens_within(memory.free(card.memory_gib), 0.5 * GIB, each, wanted, job.longest_sample)


def _too_large(job: Job, memory: Memory) -> str:
    least = memory.constant / GIB + CONTEXT_GIB
    one = (memory.token + memory.learned) * job.longest_sample / GIB
    return f"needs {least + one + 1:.0f} GiB: {least:.1f} for the model, {one:.1f} for the longest sample"


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe on every GPU.

    Attributes:
        lines: One for each of Modal's GPUs, and one for this machine's device if that is another.
        own: The line of the recipe's own GPU, the first of `modal.gpu`.
        here: The line measured on this machine; None where nothing was.
        workload: What the run computes on the recipe's own GPU, or on the first that can train it.
        samples_per_step: The batch.
        prices: The price list.
    """

    lines: tuple[Prediction, ...]
    own: Prediction
    here: Prediction | None
    workload: Workload
    samples_per_step: int
    prices: Prices

    @property
    def idle(self) -> bool:
        """More than one GPU is paid for."""
        return parse_gpu(self.own.gpu)[1] > 1


def plan_of(job: Job, prices: Prices, here: Prediction | None) -> Plan:
    """The lines of all GPUs, the recipe's own with its count.

    Args:
        job: What is to be run.
        prices: The price list.
        here: Measured on this machine; takes the place of its GPU's line.
    """
    asked = {parse_gpu(gpu)[0]: gpu for gpu in reversed(job.recipe.modal.gpu)}
    first = parse_gpu(job.recipe.modal.gpu[0])[0]
    lines = {kind: scaled(job, asked.get(kind, kind), prices) for kind in GPUS}
    if here is not None:
        lines[parse_gpu(here.gpu)[0]] = here
    own = lines[first]
    sound = [line for line in (own, *lines.values()) if line.problem is None]
    budget = sound[0].max_tokens if sound else job.longest_sample
    return Plan(tuple(lines.values()), own, here, job.workload(budget), job.recipe.train.samples_per_step, prices)
