"""Rotary position embedding: pairs of channels turned by an angle that grows with the position.

A rotation is linear and its transpose is the rotation by the opposite angle, so the backward is the forward with
-sin and nothing but the tables is kept.
"""

from typing import Any

import torch
from torch import Tensor

from strop.ops.dispatch import kernels_for


def rotary(x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """See `reference.rotary`. Channels from 2R on pass through (partial rotary)."""
    return _Rotary.apply(x_TNH, cos_TR, sin_TR)  # type: ignore[no-any-return, no-untyped-call]


def _turn(x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: float) -> Tensor:
    if kernels := kernels_for(x_TNH):
        turned_TNH: Tensor = kernels.rotary(x_TNH, cos_TR, sin_TR, sign)
        return turned_TNH
    half = cos_TR.shape[-1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None] * sign
    first, second = x_TNH[..., :half], x_TNH[..., half : 2 * half]
    out = torch.empty_like(x_TNH)
    torch.mul(first, cos_T1R, out=out[..., :half]).addcmul_(second, sin_T1R, value=-1)
    torch.mul(second, cos_T1R, out=out[..., half : 2 * half]).addcmul_(first, sin_T1R)
    out[..., 2 * half :] = x_TNH[..., 2 * half :]
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        return _turn(x_TNH, cos_TR, sin_TR, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return _turn(grads[0], cos_TR, sin_TR, -1.0), None, None
