"""LoRA's dropout without a generator: what is zeroed is a function of step, sample, position, module and column.

So it is the same however samples fall into microbatches and onto ranks, in whichever order they are computed, and when
a layer is computed again in the backward. `reference.dropout` is the definition.
"""

import torch
from torch import Tensor

_FIRST, _SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
_COLUMN = 0x9E3779B1 - 2**32
"""The multipliers of `reference.mix`, as int32, in which products wrap as they do in uint32."""


def _mix_(x: Tensor) -> Tensor:
    """`reference.mix` of every number of an int32 tensor, in place."""
    x ^= (x >> 16) & 0xFFFF
    x *= _FIRST
    x ^= (x >> 13) & 0x7FFFF
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x


def dropout(x_TI: Tensor, keys_T: Tensor, seed: int, p: float) -> Tensor:
    """`reference.dropout`.

    Args:
        x_TI: The input of a module.
        keys_T: int32, from `microbatch.keys`.
        seed: 32 bits that step and module have of their own.
        p: Probability with which a number becomes zero; the others grow by 1 / (1 - p).
    """
    rows_T = _mix_(keys_T + (seed - 2**32 if seed >= 2**31 else seed))
    columns_I = torch.arange(x_TI.shape[1], dtype=torch.int32, device=x_TI.device) * _COLUMN
    bits_TI = _mix_(rows_T[:, None] + columns_I)
    is_kept_TI = ((bits_TI >> 8) & 0xFFFFFF) >= round(p * 2**24)
    return x_TI * is_kept_TI * (1 / (1 - p))
