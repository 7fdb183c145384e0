"""The work of a run, as counts: the model's shape, and the user's own samples packed as in training.

This reads no weights and computes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from strop.data.store import SampleStore
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, Microbatches, pack
from strop.model.config import DecoderConfig
from strop.model.lora import resolve_targets
from strop.model.pretrained.tensors import group_modules, part_rows
from strop.recipe import LoraSection, Recipe


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder with LoRA; O and I are a merged projection's outputs and inputs."""

    config: DecoderConfig
    lora: LoraSection

    @cached_property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(O, I) of each merged projection of a layer."""
        config = self.config
        inputs = {"o": config.num_heads * config.head_dim, "down": config.intermediate_size}
        return {
            group: (rows[-1][1], inputs.get(group, config.hidden_size)) for group, rows in part_rows(config).items()
        }

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' frozen matrices; in a product, each takes 2 operations per token."""
        return self.config.num_layers * sum(o * i for o, i in self.projections.values())

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest frozen matrix of a layer."""
        return max(o * i for o, i in self.projections.values())

    @property
    def head_weights(self) -> int:
        """Elements of the output projection."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def other_weights(self) -> int:
        """Elements of embedding and head (counted once if tied) and the norms."""
        config = self.config
        norms = (2 * config.num_layers + 1) * config.hidden_size
        return self.head_weights * (1 if config.tie_word_embeddings else 2) + norms

    @cached_property
    def _modules(self) -> dict[str, list[int]]:
        """For each merged projection, the output rows of each targeted module."""
        targets = resolve_targets(self.config, self.lora.target_modules)
        return {
            group: [last - first for module, (first, last) in modules.items() if module in targets]
            for group, modules in group_modules(self.config).items()
        }

    @property
    def lora_parameters(self) -> int:
        """Trainable parameters."""
        rank = self.lora.r
        each = (
            len(rows) * rank * self.projections[group][1] + sum(rows) * rank for group, rows in self._modules.items()
        )
        return self.config.num_layers * sum(each)

    @property
    def thin_rows(self) -> int:
        """Rows of all A matrices of a layer."""
        return self.lora.r * sum(map(len, self._modules.values()))

    def thin_width(self, group: str) -> int:
        """Columns of a projection's A as the fused kernels read it (`fused.lora_work`)."""
        return self._block * _power_of_two(max(1, len(self._modules[group])))

    @property
    def work_elements(self) -> int:
        """Elements of LoRA's working copy."""
        each = (i * self.thin_width(group) + o * self._block for group, (o, i) in self.projections.items())
        return self.config.num_layers * sum(each)

    @property
    def _block(self) -> int:
        """Columns of one module."""
        return max(16, _power_of_two(self.lora.r))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


_HELD_OUT_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """A microbatch as counts.

    Attributes:
        tokens: Tokens computed.
        learned: Positions that predict at least one learned token.
        pairs: Query-key pairs of attention, over all layers.
        sample_tokens: Tokens of the user's samples, shared prefixes repeated.
        samples: Number of samples.
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
        num_steps: Steps of the run.
        steps: The microbatches of each of the first steps.
        evaluations: How often the held-out samples are evaluated.
        held_out: The microbatches of the first held-out samples.
        held_out_share: The share of all held-out samples in `held_out`.
        saves: Checkpoints written.
    """

    num_steps: int
    steps: tuple[tuple[Load, ...], ...]
    evaluations: int
    held_out: tuple[Load, ...]
    held_out_share: float
    saves: int

    @property
    def sharing(self) -> float:
        """Tokens of the rows per computed token."""
        loads = [load for step in self.steps for load in step]
        tokens = sum(load.tokens for load in loads)
        return sum(load.sample_tokens for load in loads) / tokens if tokens else 1.0

    @property
    def largest(self) -> Load:
        """The microbatch with the most tokens."""
        return max((load for step in self.steps for load in step), key=lambda load: load.tokens)


def count_workload(
    recipe: Recipe,
    config: DecoderConfig,
    train: SampleStore,
    held_out: SampleStore | None,
    max_tokens: int,
    ranks: int = 1,
) -> Workload:
    """Pack the first steps, and the first held-out samples, under a budget; nothing is computed.

    Of several ranks, what the first one has to do: no other has much more.
    """
    section, long_from = recipe.train, config.rope.long_from
    order = Order.of(section, len(train))
    microbatches = Microbatches(train, order, max_tokens, recipe.lora.lora_dropout == 0, long_from, ranks=ranks)
    steps = tuple(
        tuple(load_of(batch, config.sliding_windows) for batch in step) for step in microbatches.first_steps()
    )
    num_steps = order.num_steps
    shown = range(0 if held_out is None else min(_HELD_OUT_SAMPLES, len(held_out)))
    samples = [] if held_out is None else [held_out[i] for i in shown]
    batches = pack(samples, shown, max_tokens, long_from=long_from, part=(0, ranks)) if samples else []
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
    return due + at_end + (section.eval_on_start is not False)
