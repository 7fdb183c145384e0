"""Samples -> packed microbatches under a token budget. No padding, no split samples, no state, no repeated prefixes.

samples        [h h a a] [h h b] [c c c]         budget 8
microbatches   h h a a b | c c c                 labels point at the next token of the same sample
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.data.store import Sample, SampleStore
from strop.microbatch.divide import divide, shared_within
from strop.microbatch.keys import token_keys
from strop.microbatch.order import Order
from strop.microbatch.tree import Tree, fit, sort_by_prefix

_MEASURED_STEPS, _MEASURED_SAMPLES = 16, 1024
"""Enough for two digits of the sharing ratio; takes under 30 ms for a thousand short samples."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """The input of one forward and backward, on the host: the T tokens of its samples' prefix tree, and E labels.

    Attributes:
        input_ids: int64 (T,), node after node.
        tree: How the tokens divide into nodes and samples.
        learned: int64 (R,), ascending: the positions that predict at least one learned token.
        label_rows: int64 (E,), non-decreasing: the index in `learned` of each label's position.
        labels: int64 (E,), the tokens to predict; no position has the same label twice.
        weights: float32 (E,), how many samples learn that label at that position.
        samples: Each packed sample's index in the store, for error messages.
        places: int64 (num_sample_tokens,), where each token of each sample is among the T; samples concatenated.
    """

    input_ids: NDArray[np.int64]
    tree: Tree
    learned: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    samples: tuple[int, ...]
    places: NDArray[np.int64]

    def first_samples(self) -> NDArray[np.int64]:
        """For each of the T tokens, the index in the store of the first sample that it belongs to."""
        nodes = np.zeros(len(self.tree.lengths), np.int64)
        for sample, last in zip(reversed(self.samples), reversed(self.tree.last_nodes), strict=True):
            nodes[list(self.tree.paths[last])] = sample
        return np.repeat(nodes, self.tree.lengths)

    @property
    def num_tokens(self) -> int:
        """T: the tokens computed; those of a shared prefix count once."""
        return len(self.input_ids)

    @property
    def num_sample_tokens(self) -> int:
        """Tokens of the user's samples, shared prefixes repeated."""
        return len(self.places)

    @property
    def num_loss_tokens(self) -> int:
        """Learned tokens of the samples, by which the loss is normalised."""
        return int(self.weights.sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """A microbatch as the plain decoder reads it, on its device: T tokens, R of which predict E learned ones.

    Attributes:
        input_ids_T: int64.
        positions_T: int64, position of each token in its sample.
        sample_lengths_T: int64, length of the sample that each token belongs to (see `RotaryTable`).
        tree: How the tokens divide into nodes and samples.
        learned_R: int64, ascending: the positions that predict at least one learned token.
        label_rows_E: int64, the index in `learned_R` of each label's position.
        labels_E: int64, the tokens to predict.
        weights_E: float32, how many samples learn that label at that position.
        keys_T: int32, what dropout knows each token by; of a shared prefix that of its first sample.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    sample_lengths_T: Tensor
    tree: Tree
    learned_R: Tensor
    label_rows_E: Tensor
    labels_E: Tensor
    weights_E: Tensor
    keys_T: Tensor

    @classmethod
    def of(cls, microbatch: Microbatch, device: torch.device) -> "PackedInputs":
        """A microbatch on `device`."""

        def put(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        tree = microbatch.tree
        return cls(
            input_ids_T=put(microbatch.input_ids),
            positions_T=put(tree.positions()),
            sample_lengths_T=put(np.repeat(tree.sample_lengths, tree.lengths)),
            tree=tree,
            learned_R=put(microbatch.learned),
            label_rows_E=put(microbatch.label_rows),
            labels_E=put(microbatch.labels),
            weights_E=put(microbatch.weights),
            keys_T=put(token_keys(microbatch.first_samples(), tree.positions())),
        )


@dataclass(frozen=True, slots=True)
class Microbatches:
    """The microbatches of every step that one rank computes; a pure function of these attributes.

    Attributes:
        store: The training samples.
        order: Which samples make up each step.
        max_tokens: Most tokens computed in a microbatch.
        share: Compute a prefix that samples of a microbatch share only once. Off if LoRA has dropout: it draws a mask
            for each computed token, so samples that share a prefix would get the same mask.
        long_from: See `sort_by_prefix`.
        rank: Whose.
        ranks: How many divide each step among them.
    """

    store: SampleStore
    order: Order
    max_tokens: int
    share: bool
    long_from: int | None
    rank: int = 0
    ranks: int = 1

    def of_step(self, step: int) -> list[Microbatch]:
        """This rank's microbatches of a step, counted from 0; none if the step has too few samples for all ranks."""
        return self.share_of_step(step)[0]

    def share_of_step(self, step: int) -> tuple[list[Microbatch], int]:
        """`of_step`, and the learned tokens of the step on all ranks: what its loss is divided by."""
        indices = self.order.samples(step).tolist()
        samples = [self.store[i] for i in indices]
        part = (self.rank, self.ranks)
        microbatches = pack(samples, indices, self.max_tokens, share=self.share, long_from=self.long_from, part=part)
        return microbatches, sum(int(np.count_nonzero(sample.learned[1:])) for sample in samples)

    def first_steps(self) -> list[list[Microbatch]]:
        """This rank's microbatches of the first steps, enough to estimate what the others will be like."""
        steps = min(self.order.num_steps, _MEASURED_STEPS, 1 + _MEASURED_SAMPLES // self.order.samples_per_step)
        return [self.of_step(step) for step in range(steps)]

    def sharing(self) -> float:
        """Tokens of the samples per computed token, measured on the first steps."""
        microbatches = [microbatch for step in self.first_steps() for microbatch in step]
        computed = sum(m.num_tokens for m in microbatches)
        return sum(m.num_sample_tokens for m in microbatches) / computed if computed else 1.0

    def explain(self, sharing: float) -> str:
        """A note for the user about shared prefixes, given `sharing()`."""
        if self.share:
            return f"shared prefixes: {sharing:.2f} tokens of the rows for each token computed"
        return "shared prefixes are off: lora_dropout draws a mask for each token of each row"


def pack(
    samples: Sequence[Sample],
    indices: Sequence[int],
    max_tokens: int,
    *,
    share: bool = True,
    long_from: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> list[Microbatch]:
    """Pack samples into microbatches in which at most `max_tokens` tokens are computed.

    Args:
        samples: In any order. A sample longer than the budget gets a microbatch of its own.
        indices: Their indices in the store.
        max_tokens: Budget of a microbatch.
        share: Compute a common prefix once. False keeps every sample whole, and the samples in order.
        long_from: See `sort_by_prefix`.
        part: A rank and the number of ranks: pack its samples alone.
    """
    if share:
        order, shared = sort_by_prefix([sample.input_ids for sample in samples], long_from)
    else:
        order, shared = list(range(len(samples))), [0] * len(samples)
    rank, ranks = part
    mine = divide([len(samples[i].input_ids) for i in order], shared, ranks)[rank]
    order, shared = [order[i] for i in mine], shared_within(mine, shared)
    lengths = [len(samples[i].input_ids) for i in order]
    microbatches: list[Microbatch] = []
    if not order:
        return microbatches
    for start, tree in fit(lengths, shared, max_tokens):
        run = order[start : start + len(tree.last_nodes)]
        microbatches.append(_microbatch([samples[i] for i in run], tuple(indices[i] for i in run), tree))
    return microbatches


def _microbatch(samples: Sequence[Sample], indices: tuple[int, ...], tree: Tree) -> Microbatch:
    """The microbatch of a tree's samples. L: the tokens of all samples, concatenated."""
    ids_L = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    place_L = tree.places()
    input_ids = np.empty(tree.num_tokens, np.int64)
    input_ids[place_L] = ids_L  # a shared place is written once per sample, always with the same token

    targets = _targets(samples)
    # Place and label packed into one number: equal numbers are one label of several samples, and sort by place.
    pairs, counts = np.unique(place_L[targets - 1] << 32 | ids_L[targets], return_counts=True)
    places = pairs >> 32
    is_new = np.diff(places, prepend=-1) > 0
    return Microbatch(
        input_ids=input_ids,
        tree=tree,
        learned=places[is_new],
        label_rows=np.cumsum(is_new) - 1,
        labels=pairs & 0xFFFFFFFF,
        weights=counts.astype(np.float32),
        samples=indices,
        places=place_L,
    )


def labels_of(microbatch: Microbatch, samples: Sequence[Sample]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of a microbatch's labels each sample learns.

    Args:
        microbatch: From `pack`.
        samples: The samples of `microbatch.samples`, in that order.

    Returns:
        For each learned token of each sample: the sample's index in `samples`, and the label's index among the E.
    """
    ids_L = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    sample_L = np.repeat(np.arange(len(samples)), [len(sample.input_ids) for sample in samples])
    targets = _targets(samples)
    known = microbatch.learned[microbatch.label_rows] << 32 | microbatch.labels  # ascending, as `_microbatch` made them
    labels: NDArray[np.int64] = np.searchsorted(known, microbatch.places[targets - 1] << 32 | ids_L[targets])
    return sample_L[targets], labels


def _targets(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Indices of the learned tokens among the tokens of all samples, concatenated."""
    learned_L = np.concatenate([sample.learned for sample in samples])
    ends = np.cumsum([len(sample.input_ids) for sample in samples])
    learned_L[[0, *ends[:-1]]] = False  # nothing comes before a sample's first token that could predict it
    return np.flatnonzero(learned_L)
