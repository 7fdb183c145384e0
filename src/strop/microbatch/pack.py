"""Samples -> packed microbatches under a token budget: no padding, no sample cut, no state, no prefix twice.

samples   [h h a a] [h h b] [c c c]              budget 8
batches   h h a a b | c c c                      labels point at the next token of the same sample
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strop.data.store import Sample
from strop.microbatch.tree import Tree, fit, sort_by_prefix


@dataclass(frozen=True, slots=True)
class Batch:
    """A microbatch on the host: T tokens, those of the nodes of its samples' prefix tree (see `microbatch.tree`).

    Attributes:
        input_ids: int64 (T,), nodes in depth-first pre-order.
        lengths: Tokens of each node; they add up to T.
        parents: Index of each node's parent, always smaller than its own; -1 for a root.
        sample_lengths: For each node the length of the longest sample that runs through it.
        learned: int64 (R,), ascending: the positions that predict at least one learned token.
        label_rows: int64 (E,), non-decreasing: for each label its position's index in `learned`.
        labels: int64 (E,), the token to predict; no position has the same one twice.
        weights: float32 (E,), how many samples learn that label at that position.
        samples: Index in the store of each packed sample, for error messages.
        places: int64 (num_sample_tokens,), where each token of each sample is, one sample after the other.
    """

    input_ids: NDArray[np.int64]
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    sample_lengths: tuple[int, ...]
    learned: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    samples: tuple[int, ...]
    places: NDArray[np.int64]

    @property
    def num_sample_tokens(self) -> int:
        """Tokens of the samples as the user has them; T counts shared ones once."""
        return len(self.places)

    @property
    def num_loss_tokens(self) -> int:
        """Learned tokens of the samples: what the loss counts."""
        return int(self.weights.sum(dtype=np.float64))


def pack(
    samples: Sequence[Sample],
    indices: Sequence[int],
    max_tokens: int,
    *,
    share: bool = True,
    long_from: int | None = None,
) -> list[Batch]:
    """Pack samples into microbatches in which at most `max_tokens` tokens are computed.

    Args:
        samples: In any order. One longer than the budget gets a microbatch of its own.
        indices: Their indices in the store.
        max_tokens: Budget of a microbatch.
        share: Compute a common prefix once. False keeps every sample whole, and their order.
        long_from: See `sort_by_prefix`.
    """
    if share:
        order, shared = sort_by_prefix([sample.input_ids for sample in samples], long_from)
    else:
        order, shared = list(range(len(samples))), [0] * len(samples)
    lengths = [len(samples[i].input_ids) for i in order]
    batches = []
    for start, tree in fit(lengths, shared, max_tokens):
        run = order[start : start + len(tree.last_node)]
        batches.append(_batch([samples[i] for i in run], tuple(indices[i] for i in run), tree))
    return batches


def _batch(samples: Sequence[Sample], indices: tuple[int, ...], tree: Tree) -> Batch:
    """The microbatch of a tree's samples. L counts their tokens one sample after the other."""
    ids_L = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    lengths = np.subtract(tree.ends, tree.begins)
    place_L = _places(lengths, tree)
    input_ids = np.empty(tree.num_tokens, np.int64)
    input_ids[place_L] = ids_L  # a shared place is written once for each of its samples, always with the same token

    targets = _targets(samples)
    # Place and label as one number: equal ones are one label of several samples, and sorting orders them by place.
    pairs, counts = np.unique(place_L[targets - 1] << 32 | ids_L[targets], return_counts=True)
    places = pairs >> 32
    is_new = np.diff(places, prepend=-1) > 0
    return Batch(
        input_ids=input_ids,
        lengths=tuple(lengths.tolist()),
        parents=tree.parents,
        sample_lengths=tree.longest,
        learned=places[is_new],
        label_rows=np.cumsum(is_new) - 1,
        labels=pairs & 0xFFFFFFFF,
        weights=counts.astype(np.float32),
        samples=indices,
        places=place_L,
    )


def labels_of(batch: Batch, samples: Sequence[Sample]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of a microbatch's labels each sample learns.

    Args:
        batch: From `pack`.
        samples: Those of `batch.samples`, in that order.

    Returns:
        For each learned token of each sample the sample's index in `samples`, and its label's index among the E.
    """
    ids_L = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    sample_L = np.repeat(np.arange(len(samples)), [len(sample.input_ids) for sample in samples])
    targets = _targets(samples)
    known = batch.learned[batch.label_rows] << 32 | batch.labels  # ascending, as `_batch` made them
    labels: NDArray[np.int64] = np.searchsorted(known, batch.places[targets - 1] << 32 | ids_L[targets])
    return sample_L[targets], labels


def _targets(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Which of the samples' tokens, one sample after the other, are learned."""
    learned_L = np.concatenate([sample.learned for sample in samples])
    ends = np.cumsum([len(sample.input_ids) for sample in samples])
    learned_L[[0, *ends[:-1]]] = False  # nothing comes before a sample's first token that could predict it
    return np.flatnonzero(learned_L)


def _places(lengths: NDArray[np.int64], tree: Tree) -> NDArray[np.int64]:
    """Where each token of each sample is in the microbatch."""
    nodes = np.array([node for sample in range(len(tree.last_node)) for node in tree.path(sample)])
    sizes = lengths[nodes]
    starts_before = (np.cumsum(lengths) - lengths)[nodes] - (np.cumsum(sizes) - sizes)
    places: NDArray[np.int64] = np.repeat(starts_before, sizes) + np.arange(sizes.sum())
    return places
