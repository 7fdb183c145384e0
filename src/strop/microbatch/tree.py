"""The tree of prefixes that samples share, so that what many begin with is computed once.

samples   [h h h a a]  [h h h a b b]  [h h h c]        nodes   h h h ─┬─ a ─┬─ a
                                                                      │     └─ b b
                                                                      └─ c

Samples are put into lexicographic order, where those with a common prefix are neighbours and the prefix that each
shares with the one before it says everything: the tree is that list of numbers, read by intervals. No loop runs over
tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_MIN_NODE_TOKENS = 4
_MIN_SAVED_TOKENS = 16
"""A node costs every layer an attention call or a tile of its own, so it has to save something.

On the census rows, 128 samples of 19,540 tokens at a time, a node for all that is shared saves 5,580 of them with 49
shared nodes; these limits save 5,280 with 5.
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes in depth-first pre-order over samples in the order of `Shared`; each is a stretch of tokens.

    Attributes:
        first: The first sample that runs through each node; its tokens `begins` to `ends` are the node's.
        begins: Position in the sample of each node's first token.
        ends: And after its last.
        parents: Index of each node's parent, -1 for a root.
        longest: Length of the longest sample that runs through each node.
        last_node: For each sample the node that holds its last token.
    """

    first: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    parents: tuple[int, ...]
    longest: tuple[int, ...]
    last_node: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all nodes: what is computed."""
        return sum(self.ends) - sum(self.begins)

    def path(self, sample: int) -> list[int]:
        """The nodes that make a sample, from its root."""
        nodes, node = [], self.last_node[sample]
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def costs(self) -> list[int]:
        """Tokens that each sample adds to those before it."""
        costs = [0] * len(self.last_node)
        for first, begin, end in zip(self.first, self.begins, self.ends, strict=True):
            costs[first] += end - begin
        return costs


def sort_by_prefix(tokens: Sequence[NDArray[np.int32]], long_from: int | None) -> tuple[list[int], list[int]]:
    """Put samples into an order in which those with a common prefix are neighbours.

    Args:
        tokens: The ids of each sample.
        long_from: Samples longer than this share with each other only, if at all: LongRoPE turns the same position
            differently in them. None: there is no such limit.

    Returns:
        The samples' order, and for each in it how many tokens it shares with the one before it.
    """
    is_long = [long_from is not None and len(ids) > long_from for ids in tokens]
    # Big-endian bytes compare as the tokens themselves do.
    keys = [(long, ids.astype(">u4").tobytes()) for long, ids in zip(is_long, tokens, strict=True)]
    order = sorted(range(len(tokens)), key=keys.__getitem__)
    shared = [0] * min(1, len(order))
    shared += [_common(tokens[a], tokens[b]) if is_long[a] == is_long[b] else 0 for a, b in pairwise(order)]
    return order, shared


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two samples share before the first that differs."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def grow(lengths: Sequence[int], shared: Sequence[int]) -> Tree:
    """The tree of one or more samples of these lengths, each sharing so many tokens with the one before it.

    What an interval of samples has in common becomes a node if that is worth it; if not, its tokens stay at the head
    of each part of the interval.
    """
    nodes: list[tuple[int, int, int, int, int]] = []
    last_node = [-1] * len(lengths)
    intervals = [(0, len(lengths), 0, -1)]
    while intervals:
        low, high, depth, parent = intervals.pop()
        if high - low == 1:
            if lengths[low] > depth:
                nodes.append((low, depth, lengths[low], parent, lengths[low]))
                parent = len(nodes) - 1
            last_node[low] = parent
            continue
        common = min(shared[low + 1 : high])
        parts = [low, *(i for i in range(low + 1, high) if shared[i] == common), high]
        size = common - depth
        if size >= _MIN_NODE_TOKENS and size * (len(parts) - 2) >= _MIN_SAVED_TOKENS:
            nodes.append((low, depth, common, parent, max(lengths[low:high])))
            depth, parent = common, len(nodes) - 1
        intervals += [(a, b, depth, parent) for a, b in reversed(list(pairwise(parts)))]
    first, begins, ends, parents, longest = zip(*nodes, strict=True)
    return Tree(first, begins, ends, parents, longest, tuple(last_node))


def fit(lengths: Sequence[int], shared: Sequence[int], max_tokens: int) -> Iterator[tuple[int, Tree]]:
    """Cut ordered samples into runs whose trees hold at most `max_tokens`, as few and as even as the order allows.

    Yields:
        Where each run begins, and its tree. A sample longer than the budget is a run of its own.
    """
    tree = grow(lengths, shared)
    if tree.num_tokens <= max_tokens or len(lengths) == 1:
        yield 0, tree
        return
    # A run's own tree may hold a little more than this tree has there, where a node has lost the samples that made it
    # worth while; then that run is cut once more.
    for low, high in pairwise([*_cut(lengths, tree.costs(), max_tokens), len(lengths)]):
        for start, part in fit(lengths[low:high], shared[low:high], max_tokens):
            yield low + start, part


def _cut(lengths: Sequence[int], costs: Sequence[int], max_tokens: int) -> list[int]:
    """Where the fewest runs within the budget begin, their fullest as empty as possible."""
    best = _fill(lengths, costs, max_tokens)
    low, high = sum(costs) // len(best), max_tokens
    while low < high:
        middle = (low + high) // 2
        runs = _fill(lengths, costs, middle)
        if len(runs) <= len(best):
            best, high = runs, middle
        else:
            low = middle + 1
    return best


def _fill(lengths: Sequence[int], costs: Sequence[int], max_tokens: int) -> list[int]:
    """Runs filled one after the other; the first sample of each is computed in full."""
    begins, room = [0], max_tokens - lengths[0]
    for i in range(1, len(lengths)):
        if costs[i] > room:
            begins.append(i)
            room = max_tokens - lengths[i]
        else:
            room -= costs[i]
    return begins
