"""Samples -> packed microbatches under a token budget: no padding, no sample cut, no state.

samples   [a a a a] [b b] [c c c]              budget 8
batches   a a a a c c c | b b                  labels point at the next token of the same sample
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strop.data.store import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """A microbatch: T tokens of S samples, one after the other, on the host.

    Attributes:
        input_ids: int64 (T,).
        lengths: Tokens of each sample; they add up to T.
        learned: int64 indices of the positions whose next token is learned; never a sample's last position.
        labels: int64, that next token, one for each entry of `learned`.
        samples: Index in the store of each packed sample, for error messages.
    """

    input_ids: NDArray[np.int64]
    lengths: tuple[int, ...]
    learned: NDArray[np.int64]
    labels: NDArray[np.int64]
    samples: tuple[int, ...]

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that count in the loss."""
        return len(self.labels)


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group samples into microbatches of at most `max_tokens`, as few as first-fit decreasing finds.

    Longest first, each into the first microbatch with room; ties keep their order. A sample longer than the budget
    gets a microbatch of its own. Within 11/9 of the fewest possible (Johnson 1973).

    Returns:
        Positions in `lengths`, ascending inside each microbatch.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for group, left in enumerate(room):
            if lengths[i] <= left:
                groups[group].append(i)
                room[group] -= lengths[i]
                break
        else:
            groups.append([i])
            room.append(max_tokens - lengths[i])
    return [sorted(group) for group in groups]


def collate(samples: Iterable[Sample], indices: Iterable[int]) -> Batch:
    """One microbatch of these samples, in this order.

    The first token of a sample is never predicted: nothing comes before it.
    """
    ids, lengths, learned, start = [], [], [], 0
    for sample in samples:
        ids.append(sample.input_ids)
        lengths.append(len(sample.input_ids))
        learned.append(start + np.flatnonzero(sample.learned[1:]))
        start += lengths[-1]
    input_ids = np.concatenate(ids).astype(np.int64)
    positions = np.concatenate(learned).astype(np.int64)
    return Batch(input_ids, tuple(lengths), positions, input_ids[positions + 1], tuple(indices))
