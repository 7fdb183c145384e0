"""RMS norm, rotary positions and SwiGLU: all bound by memory, so each keeps little and recomputes in its backward.

**RMS norm** has a frozen gain, which gets no gradient, so only x and one number per row are kept. With
r = 1 / sqrt(mean(x^2) + eps), n = x r and u = gain * g for an incoming gradient g:

    dx = r (u - n mean(u n))

**Rotary** rotates pairs of channels by an angle that grows with the position. A rotation is linear and its
transpose is the rotation by the opposite angle, so the backward is the forward with -sin and only the
tables are kept.

**SwiGLU** on a merged gate_up activation keeps its input and recomputes the sigmoid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from strop.ops import kernels_for


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`; the last axis is normalised, and any axes may come before it."""
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


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """See `reference.swiglu`. (T, 2F) -> (T, F)."""
    return _SwiGLU.apply(gate_up_T2F)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_T2F)
        if kernels := kernels_for(gate_up_T2F):
            out_TF: Tensor = kernels.swiglu_forward(gate_up_T2F)
            return out_TF
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        return silu(gate_TF) * up_TF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_T2F,) = ctx.saved_tensors
        if kernels := kernels_for(gate_up_T2F):
            fused_T2F: Tensor = kernels.swiglu_backward(grads[0], gate_up_T2F)
            return fused_T2F
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        grad_T2F = torch.empty_like(gate_up_T2F)
        grad_gate_TF, grad_up_TF = grad_T2F.chunk(2, dim=-1)
        torch.mul(grads[0], silu(gate_TF), out=grad_up_TF)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up_TF, gate_TF, grad_input=grad_gate_TF)
        return grad_T2F
