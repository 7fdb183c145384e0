"""A microbatch as the fused decoder reads it: one block of numbers, copied to the GPU at once.

Its shapes can be padded: to whole tiles, so that kernels see few different shapes, or up to a `Capacity` that many
microbatches share, so that one captured CUDA graph computes them all. Padding consists of extra samples with nothing
to learn.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.microbatch.pack import Microbatch
from strop.ops.triton.attention_plan import QUERIES, AttentionPlan, plan_attention

Padding = Literal["none", "tiles", "graph"]

_LAUNCH_BOUND = 3e13
"""Tokens times parameters up to which a graph pays off. Phi-3-mini on an H200: at 1.4e13 it is 3 to 18% faster than
launching kernels one by one; at 5.4e13 its padding costs as much as it saves."""


def most_captured_tokens(num_base_parameters: int) -> int:
    """Tokens of the largest microbatch that is captured as a graph; larger ones run eagerly."""
    return int(_LAUNCH_BOUND / num_base_parameters)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The shapes of a microbatch: tokens T, learned positions R, labels E, attention's tiles, the longest sample."""

    tokens: int
    learned: int
    labels: int
    queries: int
    path: int
    keys: int
    sums: int
    slots: int
    longest: int

    def rounded(self, padding: Padding) -> "Capacity":
        """The shapes, rounded up as this padding asks.

        For a graph, tokens are rounded up by at most 3%, learned positions and tiles by at most 12%. The other numbers
        cost next to nothing and are rounded coarsely. Without that, 150 steps of 128 census rows need 51 graphs instead
        of 7: the length of `path` alone takes 15 values.
        """
        if padding == "none":
            return self
        if padding == "tiles":
            return replace(self, tokens=_round_up(self.tokens, 16, 64), learned=_round_up(self.learned, 16, 64))
        return Capacity(
            tokens=_round_up(self.tokens, 5, 64),
            learned=_round_up(self.learned, 3),
            labels=_round_up(self.labels, 0, 256),
            queries=_round_up(self.queries, 3),
            path=_round_up(self.path, 0, 4096),
            keys=_round_up(self.keys, 3),
            sums=_round_up(self.sums, 0, 32),
            slots=_round_up(self.slots, 1),
            longest=(1 << self.longest.bit_length()) - 1,  # 2,047, not 2,048: as large as windows are
        )


def _round_up(count: int, bits: int, least: int = 16) -> int:
    """The next multiple of 2^floor(log2 count) / 2^bits, or of `least` if that is larger; zero stays zero."""
    step = max(least, 1 << max(0, count.bit_length() - 1 - bits))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class FusedInputs:
    """A microbatch on its device, all integers int32; see `microbatch.pack.PackedInputs` and `AttentionPlan`.

    Attributes:
        input_ids_T: Token ids.
        sample_lengths_T: Length of the sample that each token belongs to.
        plan: Attention's tiles.
        learned_R: Positions that predict a learned token; T is padding.
        label_offsets: (R + 1,) where each learned position's labels start.
        labels_E: Tokens to predict.
        weights_E: float32, how many samples learn each; 0 is padding.
    """

    input_ids_T: Tensor
    sample_lengths_T: Tensor
    plan: AttentionPlan
    learned_R: Tensor
    label_offsets: Tensor
    labels_E: Tensor
    weights_E: Tensor


def lay_out(microbatch: Microbatch, padding: Padding) -> tuple[Tensor, Capacity]:
    """A microbatch as one int32 tensor on the host, padded to `Capacity.rounded`, and the shapes to read it with."""
    exact = microbatch.num_tokens
    tokens = Capacity(exact, *[0] * 8).rounded(padding).tokens
    filler = [min(QUERIES, tokens - start) for start in range(exact, tokens, QUERIES)]
    plan = plan_attention(microbatch.tree.with_samples(filler))
    capacity = Capacity(
        tokens,
        len(microbatch.learned),
        len(microbatch.labels),
        len(plan.queries),
        len(plan.path),
        len(plan.keys),
        len(plan.sums),
        plan.num_slots,
        plan.longest,
    ).rounded(padding)
    offsets = np.searchsorted(microbatch.label_rows, np.arange(capacity.learned + 1))
    tree = microbatch.tree
    arrays = (
        _fill(microbatch.input_ids, tokens),
        _fill(np.repeat(tree.sample_lengths, tree.lengths), tokens, 1),
        _fill(plan.queries.numpy(), capacity.queries),
        _fill(plan.path.numpy(), capacity.path),
        _fill(plan.keys.numpy(), capacity.keys),
        _fill(plan.sums.numpy(), capacity.sums),
        plan.positions.numpy(),
        _fill(microbatch.learned, capacity.learned, tokens),
        offsets,
        _fill(microbatch.labels, capacity.labels),
        _fill(microbatch.weights.view(np.int32), capacity.labels),
    )
    block = np.concatenate([x.astype(np.int32, copy=False).reshape(-1) for x in arrays])
    return torch.from_numpy(block), capacity


def read_inputs(block: Tensor, capacity: Capacity) -> FusedInputs:
    """Views of a block that `lay_out` made, on whichever device the block is now."""
    c = capacity
    shapes = (
        (c.tokens,), (c.tokens,), (c.queries, 5), (c.path,), (c.keys, 5), (c.sums, 4), (c.tokens,),
        (c.learned,), (c.learned + 1,), (c.labels,), (c.labels,),
    )  # fmt: skip
    parts = block.split([int(np.prod(shape)) for shape in shapes])
    ids, lengths, queries, path, keys, sums, positions, learned, offsets, labels, weights = (
        part.view(shape) for part, shape in zip(parts, shapes, strict=True)
    )
    plan = AttentionPlan(queries, path, keys, sums, positions, c.slots, c.longest)
    return FusedInputs(ids, lengths, plan, learned, offsets, labels, weights.view(torch.float32))


def _fill(array: NDArray[np.generic], length: int, value: int = 0) -> NDArray[np.generic]:
    """The array, extended to `length` rows with `value`."""
    if len(array) == length:
        return array
    rest = np.full((length - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate((array, rest))
