"""A step's samples divided among ranks, so that each computes about as many tokens.

Shared prefixes make the number of samples lie: what counts are computed tokens, a prefix once for each rank that has
samples with it.
"""

from collections.abc import Sequence
from itertools import pairwise

from strop.microbatch.tree import Tree, fill, grow

_DEPTHS = 3
"""Headers behind one another that are looked at; the samples below the last are dealt out one by one."""


def divide(lengths: Sequence[int], shared: Sequence[int], ranks: int) -> list[list[int]]:
    """Which samples each rank computes.

    Several ways are tried, and the one whose fullest rank computes least is taken: to cut the sorted samples into as
    many runs as there are ranks; and to deal out whole groups of samples behind one header, or behind one header within
    a header and so on, the largest first and always to the rank that has least so far (LPT, Graham 1969).

    Args:
        lengths: Tokens of each sample, sorted by prefix (`tree.sort_by_prefix`).
        shared: How many tokens each shares with the one before it.
        ranks: How many there are; those beyond the samples get none.

    Returns:
        For each rank the indices of its samples, ascending.
    """
    if ranks == 1 or not lengths:
        return [list(range(len(lengths))), *([] for _ in range(ranks - 1))]
    tree = grow(lengths, shared)
    depths = range(min(_DEPTHS, max(len(tree.paths[last]) for last in tree.last_nodes)))
    return min(
        [_in_runs(lengths, tree.costs(), ranks), *(_in_groups(tree, ranks, depth) for depth in depths)],
        key=lambda parts: max(_tokens(part, lengths, shared) for part in parts),
    )


def _in_runs(lengths: Sequence[int], costs: Sequence[int], ranks: int) -> list[list[int]]:
    """As many runs of neighbours as there are ranks, with the fullest as small as possible."""
    low, high = max(max(lengths), sum(costs) // ranks), max(max(lengths), sum(lengths))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(fill(lengths, costs, middle)) <= ranks else (middle + 1, high)
    begins = [*fill(lengths, costs, low), len(lengths)]
    runs = [list(range(first, last)) for first, last in pairwise(begins)]
    return runs + [[] for _ in range(ranks - len(runs))]


def _in_groups(tree: Tree, ranks: int, depth: int) -> list[list[int]]:
    """Whole groups of samples below one node of this depth, dealt out by what they need from there on."""
    groups: dict[int, list[int]] = {}
    nodes: dict[int, set[int]] = {}
    for sample, last in enumerate(tree.last_nodes):
        path = tree.paths[last]
        head = path[min(depth, len(path) - 1)]
        groups.setdefault(head, []).append(sample)
        nodes.setdefault(head, set()).update(path[depth:])
    costs = {head: sum(tree.lengths[node] for node in below) for head, below in nodes.items()}
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for head in sorted(groups, key=lambda head: (-costs[head], head)):
        least = loads.index(min(loads))
        parts[least] += groups[head]
        loads[least] += costs[head]
    return [sorted(part) for part in parts]


def _tokens(part: Sequence[int], lengths: Sequence[int], shared: Sequence[int]) -> int:
    """Tokens that a rank computes for these samples."""
    return grow([lengths[i] for i in part], shared_within(part, shared)).num_tokens if part else 0


def shared_within(part: Sequence[int], shared: Sequence[int]) -> list[int]:
    """How many tokens each of some sorted samples shares with the one before it among them."""
    return [0, *(min(shared[before + 1 : sample + 1]) for before, sample in pairwise(part))][: len(part)]
