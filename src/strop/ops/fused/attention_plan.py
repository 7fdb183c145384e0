"""The tiles of attention over packed prefix trees, made on the host.

Nodes lie depth-first, so key k is visible to query q exactly if k <= q < end of the subtree of k's node. A tile of
queries, in the forward, needs the keys on its node's path from the root. A tile of keys, in the backward, is seen by
one contiguous run of queries; where that run is long, as for a prefix that many samples share, it is cut into chunks
whose sums are added up afterwards in a fixed order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.ops.attention import Packing

QUERIES, KEYS = 64, 64
"""Tokens of a tile."""

CHUNK = 2048
"""Queries that one program adds up at most for a tile of keys."""

Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The tiles of a packing, int32; tiles with a count of zero are padding.

    Attributes:
        queries: (tiles, 5): first token, tokens, tokens on the path before it, where its ancestors start in `path`,
            ancestors' tokens.
        path: The tokens of nodes' ancestors, root first.
        keys: (tiles, 5): first token, tokens, first and end of the queries that see it, slot of its partial sum or -1.
        sums: (tiles, 4): first token, tokens, first slot, slots.
        positions: (T,) each token's position in its sample.
        num_slots: Partial sums that there is room for.
    """

    queries: Tensor
    path: Tensor
    keys: Tensor
    sums: Tensor
    positions: Tensor
    num_slots: int


@dataclass(frozen=True, slots=True)
class HostPlan:
    """`AttentionPlan` as numpy arrays without padding."""

    queries: Int32
    path: Int32
    keys: Int32
    sums: Int32
    positions: Int32
    num_slots: int

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The plan on a device, as it is."""
        arrays = (self.queries, self.path, self.keys, self.sums, self.positions)
        return AttentionPlan(*(torch.from_numpy(x).to(device) for x in arrays), num_slots=self.num_slots)


def plan_attention(packing: Packing) -> HostPlan:
    """The tiles of a packing."""
    lengths, parents = np.asarray(packing.lengths), np.asarray(packing.parents)
    starts = np.concatenate(([0], lengths[:-1])).cumsum()
    before, ends, path, offsets = _tree(lengths, parents, starts)
    node, at = _tiles(lengths, QUERIES)
    queries = (
        starts[node] + at,
        np.minimum(QUERIES, lengths[node] - at),
        before[node] + at,
        offsets[node],
        before[node],
    )
    keys, sums, num_slots = _key_tiles(lengths, starts, ends)
    positions = np.arange(lengths.sum()) + np.repeat(before - starts, lengths)
    return HostPlan(_table(queries), path.astype(np.int32), keys, sums, positions.astype(np.int32), num_slots)


def _tree(
    lengths: NDArray[np.int64], parents: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Per node: tokens before it on its path, end of its subtree; all paths of ancestors; where each node's begins."""
    before, ends, offsets = np.zeros_like(lengths), starts + lengths, np.zeros_like(lengths)
    paths: dict[int, NDArray[np.int64]] = {-1: np.zeros(0, np.int64)}  # of a parent, itself included
    begins, total = {-1: 0}, 0
    for i, parent in enumerate(parents.tolist()):
        if parent not in paths:
            above = paths[int(parents[parent])]
            paths[parent] = np.concatenate((above, np.arange(starts[parent], starts[parent] + lengths[parent])))
            begins[parent] = total
            total += len(paths[parent])
        before[i], offsets[i] = len(paths[parent]), begins[parent]
    for i in range(len(parents) - 1, -1, -1):
        if parents[i] >= 0:
            ends[parents[i]] = max(ends[parents[i]], ends[i])
    return before, ends, np.concatenate(list(paths.values())), offsets


def _key_tiles(
    lengths: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[Int32, Int32, int]:
    node, at = _tiles(lengths, KEYS)
    first, count, end = starts[node] + at, np.minimum(KEYS, lengths[node] - at), ends[node]
    chunks = -(-(end - first) // CHUNK)
    many = chunks > 1
    num_slots = int(chunks[many].sum())
    # Tiles in chunks come first: their programs run longest.
    tile = np.concatenate((np.repeat(np.flatnonzero(many), chunks[many]), np.flatnonzero(~many)))
    chunk = np.concatenate([np.arange(n) for n in chunks[many]] + [np.zeros((~many).sum(), np.int64)])
    low = first[tile] + chunk * CHUNK
    slots = np.concatenate((np.arange(num_slots), np.full((~many).sum(), -1)))
    keys = (first[tile], count[tile], low, np.minimum(low + CHUNK, end[tile]), slots)
    first_slot = chunks[many].cumsum() - chunks[many]
    return _table(keys), _table((first[many], count[many], first_slot, chunks[many])), num_slots


def _tiles(lengths: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The node of each tile, and where in the node the tile starts."""
    counts = -(-lengths // size)
    node = np.repeat(np.arange(len(lengths)), counts)
    return node, (np.arange(len(node)) - np.repeat(counts.cumsum() - counts, counts)) * size


def _table(columns: tuple[NDArray[np.int64], ...]) -> Int32:
    return np.stack(columns, axis=1).astype(np.int32)
