"""A step's samples divided among ranks, so that each computes about as many tokens.

Shared prefixes make the number of samples lie: what counts are computed tokens, a prefix once for each rank that has
samples with it.
"""

from collections.abc import Sequence
from itertools import pairwise

from strop.microbatch.tree import Tree, fill, grow


def divide(lengths: Sequence[int], shared: Sequence[int], ranks: int) -> list[list[int]]:
    """Which samples each rank computes.

    Two ways are tried, and the one whose fullest rank computes less is taken. Cutting the sorted samples into as many
    runs as there are ranks suits samples that all share a prefix. Dealing out whole groups, each of which shares
    nothing with the others, the largest first and always to the rank that has least so far (LPT, Graham 1969), suits
    samples that share little.

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
    return min(
        (_in_runs(lengths, tree.costs(), ranks), _in_groups(tree, ranks)),
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


def _in_groups(tree: Tree, ranks: int) -> list[list[int]]:
    """Whole groups of samples below one root, dealt out."""
    costs = tree.costs()
    groups: dict[int, list[int]] = {}
    for sample, last in enumerate(tree.last_nodes):
        groups.setdefault(tree.paths[last][0], []).append(sample)
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for cost, group in sorted(((sum(costs[i] for i in each), each) for each in groups.values()), reverse=True):
        least = loads.index(min(loads))
        parts[least] += group
        loads[least] += cost
    return [sorted(part) for part in parts]


def _tokens(part: Sequence[int], lengths: Sequence[int], shared: Sequence[int]) -> int:
    """Tokens that a rank computes for these samples."""
    return grow([lengths[i] for i in part], shared_within(part, shared)).num_tokens if part else 0


def shared_within(part: Sequence[int], shared: Sequence[int]) -> list[int]:
    """How many tokens each of some sorted samples shares with the one before it among them."""
    return [0, *(min(shared[before + 1 : sample + 1]) for before, sample in pairwise(part))][: len(part)]
