"""A microbatch whose samples share prefixes, for the tests of the fused decoder."""

import numpy as np

from strop.data.store import Sample
from strop.microbatch.pack import Microbatch, pack


def samples(seed: int = 0, vocab: int = 60) -> list[Sample]:
    """A prefix of 70 tokens shared by three, one of 9 inside it shared by two, a loner, and one of a single token."""
    rng = np.random.default_rng(seed)
    long, short = rng.integers(3, vocab, 70), rng.integers(3, vocab, 9)
    tails = [rng.integers(3, vocab, n) for n in (5, 20, 66)]
    rows = [
        np.concatenate((long, short, tails[0])),
        np.concatenate((long, short, tails[1])),
        np.concatenate((long, tails[2])),
        rng.integers(3, vocab, 75),
        rng.integers(3, vocab, 1),
    ]
    return [Sample(row.astype(np.int32), np.arange(len(row)) % 3 < 2) for row in rows]


def batch_of(share: bool, seed: int = 0, every: int = 1) -> Microbatch:
    """The samples as one microbatch, with shared prefixes or without; of their tokens every n-th, where tiles are no
    matter and the interpreter is slow."""
    rows = [Sample(row.input_ids[::every], row.learned[::every]) for row in samples(seed)]
    (batch,) = pack(rows, range(len(rows)), 10_000, share=share)
    assert (max(batch.tree.parents) >= 0) == share
    return batch
