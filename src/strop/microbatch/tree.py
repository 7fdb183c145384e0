"""The tree of prefixes that samples share, so that a common beginning is computed once.

samples   [h h h a a]  [h h h a b b]  [h h h c]        nodes   h h h ─┬─ a ─┬─ a
                                                                      │     └─ b b
                                                                      └─ c

Samples are sorted lexicographically, so those with a common prefix are neighbours. The number of tokens that each
sample shares with the previous one then determines the tree, which is built from intervals of that list. No loop runs
over tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_MIN_NODE_TOKENS = 4
_MIN_SAVED_TOKENS = 16
"""A node costs every layer an extra attention call or tile, so it has to save something.

On the census rows, 128 samples with 19,540 tokens at a time, a node for everything shared saves 5,580 tokens with 49
shared nodes; with these limits, 5 shared nodes save 5,280.
"""


@dataclass(frozen=True)
class Tree:
    """How T tokens divide into nodes, in depth-first pre-order. A sample is the path from a root to a node below it.

    The nodes of a subtree are adjacent, so token q sees token k exactly if k <= q < ends[node of k], and ancestors need
    not be listed. Without shared prefixes every node is a root and a whole sample.

    Attributes:
        lengths: Tokens of each node.
        parents: Index of each node's parent, -1 for a root.
        last_nodes: For each sample, the node with its last token; non-decreasing.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    last_nodes: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], parents: Sequence[int] | None = None) -> "Tree":
        """A tree in which each leaf is a sample; without `parents`, every node is a root and a leaf.

        Raises:
            ValueError: The nodes are not in depth-first pre-order.
        """
        parents = (-1,) * len(lengths) if parents is None else tuple(parents)
        path: list[int] = []
        for node, (_, parent) in enumerate(zip(lengths, parents, strict=True)):
            while path and path[-1] != parent:
                path.pop()
            if not path and parent != -1:
                raise ValueError(f"node {node}: its parent {parent} is not on the path to the node before it")
            path.append(node)
        inner = set(parents)
        return cls(tuple(lengths), parents, tuple(node for node in range(len(parents)) if node not in inner))

    @cached_property
    def num_tokens(self) -> int:
        """T: the tokens of all nodes, each computed once."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of each node's first token."""
        return tuple((np.cumsum(self.lengths) - self.lengths).tolist())

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Position in the sample of each node's first token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + self.lengths[parent])
        return tuple(depths)

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For each node, its ancestors, root first, then the node itself."""
        paths: list[tuple[int, ...]] = []
        for node, parent in enumerate(self.parents):
            paths.append((node,) if parent < 0 else (*paths[parent], node))
        return tuple(paths)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Index after the last token of each node's last descendant."""
        ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
        return self._largest_below(ends)

    @cached_property
    def sample_lengths(self) -> tuple[int, ...]:
        """For each node, the length of the longest sample that passes through it."""
        return self._largest_below([depth + length for depth, length in zip(self.depths, self.lengths, strict=True)])

    @property
    def is_flat(self) -> bool:
        """Whether no prefix is shared, so that every node is a whole sample."""
        return all(parent < 0 for parent in self.parents)

    def positions(self) -> NDArray[np.int64]:
        """The position of each token in its sample, (T,)."""
        positions: NDArray[np.int64] = np.arange(self.num_tokens) + np.repeat(
            np.subtract(self.depths, self.starts), self.lengths
        )
        return positions

    def places(self) -> NDArray[np.int64]:
        """Where each token of each sample is among the T, samples concatenated: (tokens of all samples,)."""
        nodes = np.array([node for last in self.last_nodes for node in self.paths[last]])
        sizes = np.array(self.lengths)[nodes]
        starts_before = np.array(self.starts)[nodes] - (np.cumsum(sizes) - sizes)
        places: NDArray[np.int64] = np.repeat(starts_before, sizes) + np.arange(sizes.sum())
        return places

    def costs(self) -> list[int]:
        """Tokens that each sample adds to the earlier samples: those of nodes that no earlier sample has."""
        reached = np.cumsum((0, *self.lengths))[np.array(self.last_nodes) + 1]
        costs: list[int] = np.diff(reached, prepend=0).tolist()
        return costs

    def with_samples(self, lengths: Sequence[int]) -> "Tree":
        """The tree with further samples appended that share nothing."""
        count = len(self.lengths)
        return Tree(
            (*self.lengths, *lengths),
            (*self.parents, *[-1] * len(lengths)),
            (*self.last_nodes, *range(count, count + len(lengths))),
        )

    def _largest_below(self, numbers: list[int]) -> tuple[int, ...]:
        """For each node, the largest of its own and its descendants' numbers; children come after their parents."""
        largest = list(numbers)
        for node in range(len(largest) - 1, -1, -1):
            if (parent := self.parents[node]) >= 0:
                largest[parent] = max(largest[parent], largest[node])
        return tuple(largest)


def sort_by_prefix(tokens: Sequence[NDArray[np.int32]], long_from: int | None) -> tuple[list[int], list[int]]:
    """Sort samples so that those with a common prefix are neighbours.

    Args:
        tokens: The ids of each sample.
        long_from: Samples longer than this share prefixes only with each other, because LongRoPE rotates the same
            position differently in them. None means no such limit.

    Returns:
        The samples' order, and for each sample in that order, how many tokens it shares with the previous one.
    """
    is_long = [long_from is not None and len(ids) > long_from for ids in tokens]
    # Big-endian bytes compare in the same order as the tokens themselves.
    keys = [(long, ids.astype(">u4").tobytes()) for long, ids in zip(is_long, tokens, strict=True)]
    order = sorted(range(len(tokens)), key=keys.__getitem__)
    shared = [0] * min(1, len(order))
    shared += [_common(tokens[a], tokens[b]) if is_long[a] == is_long[b] else 0 for a, b in pairwise(order)]
    return order, shared


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two samples have in common before the first difference."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def grow(lengths: Sequence[int], shared: Sequence[int]) -> Tree:
    """The tree of one or more samples, given their lengths and how many tokens each shares with the previous one.

    The common prefix of an interval of samples becomes a node if that is worth it. If not, its tokens stay at the head
    of each part of the interval.
    """
    nodes: list[tuple[int, int]] = []  # length, parent
    last_nodes = [-1] * len(lengths)
    intervals = [(0, len(lengths), 0, -1)]
    while intervals:
        low, high, depth, parent = intervals.pop()
        if high - low == 1:
            if lengths[low] > depth:
                nodes.append((lengths[low] - depth, parent))
                parent = len(nodes) - 1
            last_nodes[low] = parent
            continue
        common = min(shared[low + 1 : high])
        parts = [low, *(i for i in range(low + 1, high) if shared[i] == common), high]
        size = common - depth
        if size >= _MIN_NODE_TOKENS and size * (len(parts) - 2) >= _MIN_SAVED_TOKENS:
            nodes.append((size, parent))
            depth, parent = common, len(nodes) - 1
        intervals += [(a, b, depth, parent) for a, b in reversed(list(pairwise(parts)))]
    node_lengths, parents = zip(*nodes, strict=True)
    return Tree(node_lengths, parents, tuple(last_nodes))


def fit(lengths: Sequence[int], shared: Sequence[int], max_tokens: int) -> Iterator[tuple[int, Tree]]:
    """Cut sorted samples into runs whose trees hold at most `max_tokens`, as few and as even as the order allows.

    Yields:
        The index at which each run begins, and its tree. A sample longer than the budget is a run of its own.
    """
    tree = grow(lengths, shared)
    if tree.num_tokens <= max_tokens or len(lengths) == 1:
        yield 0, tree
        return
    # A run's own tree may hold slightly more tokens than its part of this tree, if a node has lost the samples that
    # made it worthwhile. Such a run is cut again.
    for low, high in pairwise([*_cut(lengths, tree.costs(), max_tokens), len(lengths)]):
        for start, part in fit(lengths[low:high], shared[low:high], max_tokens):
            yield low + start, part


def _cut(lengths: Sequence[int], costs: Sequence[int], max_tokens: int) -> list[int]:
    """Where the runs begin: as few as the budget allows, with the fullest as small as possible."""
    best = fill(lengths, costs, max_tokens)
    low, high = sum(costs) // len(best), max_tokens
    while low < high:
        middle = (low + high) // 2
        runs = fill(lengths, costs, middle)
        if len(runs) <= len(best):
            best, high = runs, middle
        else:
            low = middle + 1
    return best


def fill(lengths: Sequence[int], costs: Sequence[int], max_tokens: int) -> list[int]:
    """Where the runs begin if each is filled before the next; a run's first sample is computed in full."""
    begins, room = [0], max_tokens - lengths[0]
    for i in range(1, len(lengths)):
        if costs[i] > room:
            begins.append(i)
            room = max_tokens - lengths[i]
        else:
            room -= costs[i]
    return begins
