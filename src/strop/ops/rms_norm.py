"""RMS norm with a frozen gain: no gradient for the gain, and only x and one number a row kept.

With r = 1 / sqrt(mean(x^2) + eps), n = x r and u = gain * g for an incoming gradient g:

    dx = r (u - n mean(u n))
"""

from typing import Any

import torch
from torch import Tensor

from strop.ops.dispatch import kernels_for


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; the last axis is the one that is normed, any axes may come before it."""
    return _RmsNorm.apply(x_TD, weight_D, eps)  # type: ignore[no-any-return, no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        if kernels := kernels_for(x_TD):
            y_TD: Tensor
            y_TD, scale_T1 = kernels.rms_norm_forward(x_TD, weight_D, eps)
            ctx.save_for_backward(x_TD, weight_D, scale_T1)
            return y_TD
        wide = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        scale_T1 = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        return (wide * scale_T1).to(x_TD.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        if kernels := kernels_for(x_TD):
            return kernels.rms_norm_backward(grads[0], x_TD, weight_D, scale_T1), None, None
        normed = x_TD.to(scale_T1.dtype) * scale_T1
        u = (grads[0] * weight_D).to(scale_T1.dtype)
        projection_T1 = (u * normed).mean(-1, keepdim=True)
        return u.addcmul_(normed, projection_T1, value=-1).mul_(scale_T1).to(x_TD.dtype), None, None
