"""What the fused decoder reads of a microbatch: one block of numbers, copied to the GPU at once.

Its shapes can be padded: to whole tiles, so that kernels meet few kinds of shapes, or up to a `Capacity` that many
microbatches have in common, so that one captured CUDA graph computes them all. Padding is made of samples of their own
that nobody learns.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.microbatch.inputs import HostBatch
from strop.ops.attention import Packing
from strop.ops.fused.attention_plan import QUERIES, AttentionPlan, plan_attention

Padding = Literal["none", "tiles", "graph"]


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
        """The next shapes of this kind.

        A graph's tokens are within 3%, learned positions and tiles within 12%. The other numbers cost next to nothing
        and are rounded far: were they not, 150 steps of 128 census rows would need 51 graphs, for the length of `path`
        alone takes 15 values, instead of 7.
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
    """The next multiple of the count's power of two over 2^bits, or of `least`; zero stays zero."""
    step = max(least, 1 << max(0, count.bit_length() - 1 - bits))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class FusedInputs:
    """A microbatch on its device, all integers int32; see `microbatch.inputs.PackedInputs` and `AttentionPlan`.

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


@dataclass(frozen=True, slots=True)
class InputBlock:
    """A microbatch as one int32 array on the host, and the shapes by which it is read."""

    numbers: NDArray[np.int32]
    capacity: Capacity

    @classmethod
    def of(cls, batch: HostBatch, padding: Padding) -> "InputBlock":
        """A microbatch, padded to `Capacity.rounded`."""
        exact = len(batch.input_ids)
        tokens = Capacity(exact, *[0] * 8).rounded(padding).tokens
        filler = [min(QUERIES, tokens - start) for start in range(exact, tokens, QUERIES)]
        packing = Packing.of((*batch.lengths, *filler), (*batch.parents, *[-1] * len(filler)))
        plan = plan_attention(packing)
        capacity = Capacity(
            tokens,
            len(batch.learned),
            len(batch.labels),
            len(plan.queries),
            len(plan.path),
            len(plan.keys),
            len(plan.sums),
            plan.num_slots,
            plan.longest,
        ).rounded(padding)
        offsets = np.searchsorted(batch.label_rows, np.arange(capacity.learned + 1))
        arrays = (
            _fill(batch.input_ids, tokens),
            _fill(np.repeat(batch.sample_lengths, batch.lengths), tokens, 1),
            _fill(plan.queries, capacity.queries),
            _fill(plan.path, capacity.path),
            _fill(plan.keys, capacity.keys),
            _fill(plan.sums, capacity.sums),
            plan.positions,
            _fill(batch.learned, capacity.learned, tokens),
            offsets,
            _fill(batch.labels, capacity.labels),
            _fill(batch.weights.view(np.int32), capacity.labels),
        )
        return cls(np.concatenate([x.astype(np.int32, copy=False).reshape(-1) for x in arrays]), capacity)

    def host_tensor(self, device: torch.device) -> Tensor:
        """The block, in memory that a GPU can copy from on its own."""
        tensor = torch.from_numpy(self.numbers)
        return tensor.pin_memory() if device.type == "cuda" else tensor


def read_inputs(block: Tensor, capacity: Capacity) -> FusedInputs:
    """Views of an input block on its device."""
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
    """An array lengthened to `length` rows of `value`."""
    if len(array) == length:
        return array
    rest = np.full((length - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate((array, rest))
