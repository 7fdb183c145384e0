"""A number by which dropout knows each token, wherever it is computed: of its sample and its position there."""

import numpy as np
from numpy.typing import NDArray


def token_keys(samples_T: NDArray[np.int64], positions_T: NDArray[np.int64]) -> NDArray[np.int32]:
    """`mix(mix(sample) + position)` of `ops.reference`, (T,), as int32.

    Args:
        samples_T: Each token's sample, as its index in the store.
        positions_T: Its position in that sample.
    """
    return _mix(_mix(samples_T.astype(np.uint32)) + positions_T.astype(np.uint32)).view(np.int32)


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
