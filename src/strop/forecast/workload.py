"""What a run computes, counted on the user's own samples, packed as in training with the prefixes that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strop.data.store import SampleStore
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, Microbatches, pack
from strop.model.config import DecoderConfig
from strop.recipe import Recipe

_HELD_OUT_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """A microbatch as counts.

    Attributes:
        tokens: Computed.
        learned: Positions from which something is learned.
        pairs: Query-key pairs of attention, over all layers.
        sample_tokens: Tokens of the samples as the user has them.
        samples: How many.
    """

    tokens: int
    learned: int
    pairs: float
    sample_tokens: int
    samples: int


def load_of(microbatch: Microbatch, windows: Sequence[int | None]) -> Load:
    """The counts of a microbatch, given each layer's attention window."""
    visible = microbatch.tree.positions() + 1
    pairs = sum(
        windows.count(window) * (visible if window is None else np.minimum(visible, window)).sum(dtype=np.float64)
        for window in set(windows)
    )
    return Load(
        tokens=microbatch.num_tokens,
        learned=len(microbatch.learned),
        pairs=float(pairs),
        sample_tokens=microbatch.num_sample_tokens,
        samples=len(microbatch.samples),
    )


@dataclass(frozen=True)
class Workload:
    """The recipe's steps under one token budget.

    Attributes:
        num_steps: Of the run.
        steps: The first steps, each as its microbatches.
        evaluations: Times that the held-out samples are evaluated.
        held_out: The first held-out samples' microbatches.
        held_out_share: Of all held-out samples that those are.
        saves: Checkpoints.
    """

    num_steps: int
    steps: tuple[tuple[Load, ...], ...]
    evaluations: int
    held_out: tuple[Load, ...]
    held_out_share: float
    saves: int

    @property
    def sharing(self) -> float:
        """Tokens of the rows for each token computed."""
        loads = [load for step in self.steps for load in step]
        return sum(load.sample_tokens for load in loads) / sum(load.tokens for load in loads)

    @property
    def largest(self) -> Load:
        """The microbatch with most tokens."""
        return max((load for step in self.steps for load in step), key=lambda load: load.tokens)


def count_workload(
    recipe: Recipe, config: DecoderConfig, train: SampleStore, held_out: SampleStore | None, max_tokens: int
) -> Workload:
    """Pack the first steps, and the first held-out samples, under a budget; nothing is computed."""
    section, long_from = recipe.train, config.rope.long_from
    order = Order.of(section, len(train))
    microbatches = Microbatches(train, order, max_tokens, recipe.lora.lora_dropout == 0, long_from)
    steps = tuple(
        tuple(load_of(batch, config.sliding_windows) for batch in step) for step in microbatches.first_steps()
    )
    num_steps = order.num_steps
    shown = range(0 if held_out is None else min(_HELD_OUT_SAMPLES, len(held_out)))
    samples = [] if held_out is None else [held_out[i] for i in shown]
    batches = pack(samples, shown, max_tokens, long_from=long_from) if samples else []
    return Workload(
        num_steps=num_steps,
        steps=steps,
        evaluations=_evaluations(recipe, num_steps) if held_out is not None else 0,
        held_out=tuple(load_of(batch, config.sliding_windows) for batch in batches),
        held_out_share=1.0 if held_out is None else len(shown) / len(held_out),
        saves=1 + (max(0, num_steps - 1) // section.save_steps if section.save_steps else 0),
    )


def _evaluations(recipe: Recipe, num_steps: int) -> int:
    section = recipe.train
    due = num_steps // section.eval_steps if section.eval_steps else 0
    at_end = not section.eval_steps or num_steps % section.eval_steps != 0
    return due + at_end + section.eval_on_start
