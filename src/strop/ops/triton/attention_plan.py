"""The tiles of attention over packed prefix trees, made on the host.

Nodes are in depth-first order, so key k is visible to query q exactly if k <= q < end of the subtree of k's node. In
the forward, a tile of queries needs the keys on its node's path from the root. In the backward, a tile of keys is seen
by one contiguous run of queries. A long run, as for a prefix that many samples share, is cut into chunks whose sums are
added up afterwards in a fixed order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.microbatch.tree import Tree

QUERIES, KEYS = 64, 64
"""Tokens of a tile."""

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The tiles of a tree, int32; a tile with zero tokens is padding.

    Attributes:
        queries: (tiles, 5): first token, tokens, tokens on the path before it, where its ancestors start in `path`,
            ancestors' tokens.
        path: The tokens of nodes' ancestors, root first.
        keys: (tiles, 5): first token, tokens, first and end of the queries that see it, slot of its partial sum or -1.
        sums: (tiles, 4): first token, tokens, first slot, slots.
        positions: (T,), each token's position in its sample.
        num_slots: Slots for partial sums.
        longest: An upper bound on the tokens of the longest sample.
    """

    queries: Tensor
    path: Tensor
    keys: Tensor
    sums: Tensor
    positions: Tensor
    num_slots: int
    longest: int

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """The plan on a device."""
        tensors = (self.queries, self.path, self.keys, self.sums, self.positions)
        queries, path, keys, sums, positions = (x.to(device) for x in tensors)
        return AttentionPlan(queries, path, keys, sums, positions, self.num_slots, self.longest)


def plan_attention(tree: Tree) -> AttentionPlan:
    """The tiles of a tree, on the host and without padding."""
    lengths, starts, depths, ends = (
        np.asarray(x, np.int64) for x in (tree.lengths, tree.starts, tree.depths, tree.ends)
    )
    path, offsets = _paths(tree)
    node, at = _tiles(lengths, QUERIES)
    count = np.minimum(QUERIES, lengths[node] - at)
    queries = _table((starts[node] + at, count, depths[node] + at, offsets[node], depths[node]))
    keys, sums, num_slots = _key_tiles(lengths, starts, ends, _chunk(tree.num_tokens))
    positions = tree.positions().astype(np.int32)
    tiles, path_T, key_tiles, summed, positions_T = map(torch.from_numpy, (queries, path, keys, sums, positions))
    return AttentionPlan(tiles, path_T, key_tiles, summed, positions_T, num_slots, max(tree.sample_lengths))


def _paths(tree: Tree) -> tuple[Int32, Int64]:
    """The tokens of each parent's path, concatenated, and where each node's ancestors begin in them."""
    lists, begins, total = [np.zeros(0, np.int64)], {-1: 0}, 0
    for parent in sorted(set(tree.parents) - {-1}):
        begins[parent] = total
        for node in tree.paths[parent]:
            lists.append(np.arange(tree.starts[node], tree.starts[node] + tree.lengths[node]))
            total += tree.lengths[node]
    return np.concatenate(lists).astype(np.int32), np.array([begins[parent] for parent in tree.parents])


def _chunk(tokens: int) -> int:
    """Most queries that one program adds up for a tile of keys.

    Every query sees a prefix that all samples share. Chunks must be small enough to keep all multiprocessors busy, and
    large enough that the partial sums cost little: 1,024 is 8% faster than 2,048 at 14,700 tokens, and 256 than 1,024
    at 1,000 tokens.
    """
    return min(1024, max(256, 1 << (tokens // 16).bit_length()))


def _key_tiles(lengths: Int64, starts: Int64, ends: Int64, chunk_size: int) -> tuple[Int32, Int32, int]:
    """`keys`, `sums` and `num_slots` of the plan."""
    node, at = _tiles(lengths, KEYS)
    first, count, end = starts[node] + at, np.minimum(KEYS, lengths[node] - at), ends[node]
    run = end - first
    # For a run of only two chunks, the partial sums cost more than spreading the work gains.
    chunks = np.where(run > 2 * chunk_size, -(-run // chunk_size), 1)
    many, few = np.flatnonzero(chunks > 1), np.flatnonzero(chunks == 1)
    first_slot = chunks[many].cumsum() - chunks[many]
    num_slots = int(chunks[many].sum())
    # Tiles cut into chunks come first, because their programs run longest.
    tile = np.concatenate((np.repeat(many, chunks[many]), few))
    chunk = np.concatenate((np.arange(num_slots) - np.repeat(first_slot, chunks[many]), np.zeros_like(few)))
    slots = np.concatenate((np.arange(num_slots), np.full_like(few, -1)))
    low = first[tile] + chunk * chunk_size
    high = np.where(slots < 0, end[tile], np.minimum(low + chunk_size, end[tile]))
    keys = (first[tile], count[tile], low, high, slots)
    return _table(keys), _table((first[many], count[many], first_slot, chunks[many])), num_slots


def _tiles(lengths: Int64, size: int) -> tuple[Int64, Int64]:
    """Each tile's node, and where in the node the tile starts."""
    counts = -(-lengths // size)
    node = np.repeat(np.arange(len(lengths)), counts)
    return node, (np.arange(len(node)) - np.repeat(counts.cumsum() - counts, counts)) * size


def _table(columns: tuple[Int64, ...]) -> Int32:
    return np.stack(columns, axis=1).astype(np.int32)
