"""SwiGLU on a merged gate_up activation: keeps the input, recomputes the sigmoid in the backward."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from strop.ops.dispatch import kernels_for


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
