"""How often an epoch sees each sample of a mixture: a pure function of the sources' sizes, repeats and weights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strop.data.sources import Source
from strop.data.store import SampleStore


def mixed(store: SampleStore) -> SampleStore:
    """An epoch of a store: its samples as often as their sources ask; the store itself if that is once."""
    if all(source.repeat == 1 for source in store.sources):
        return store
    wanted = counts(store.sources, np.bincount(store.source_indices(), minlength=len(store.sources)))
    return store.repeated(picks(store, wanted))


def counts(sources: Sequence[Source], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples of each source in an epoch.

    With weights, the epoch is as short as it can be while every sample of every source is seen at least once.

    Args:
        sources: Either all with a weight, or all with a repeat.
        sizes: Samples of each, int64 (sources,).
    """
    if any(source.weight is None for source in sources):
        repeats = np.array([source.repeat or 1.0 for source in sources])
        wanted: NDArray[np.int64] = np.maximum(np.rint(sizes * repeats), sizes > 0).astype(np.int64)
        return wanted
    shares = np.array([source.weight for source in sources]) * (sizes > 0)
    epoch = max(size / share for size, share in zip(sizes, shares, strict=True) if size) if sizes.any() else 0.0
    return np.rint(epoch * shares).astype(np.int64)


def picks(store: SampleStore, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of samples, int64 (wanted.sum(),): whole rounds of each source, then part of one.

    The part is chosen by the hash of the rows' content, so that it does not depend on their order.
    """
    of = store.source_indices()
    chosen = []
    for number, count in enumerate(wanted):
        members = np.flatnonzero(of == number)
        if not len(members):
            continue
        rounds, rest = divmod(int(count), len(members))
        part = members[np.argsort(store.rows["content"][members], kind="stable")[:rest]]
        chosen += [members] * rounds + [np.sort(part)]
    return np.concatenate(chosen)
