"""A frozen linear and the LoRA terms of every module merged into it, as one op with its own backward.

Autograd on the plain form would keep y twice, add into a fresh copy and compute each module's product on its own.
Here the low-rank terms are added into y in place, all A products are one matrix product, and only x and
h = x A^T are kept for the backward. With g the gradient of y, s the scaling and i a module:

    dh_i = s g_i B_i        dB_i = s g_i^T h_i        dA = dh^T x        dx = g W + dh A
"""

from typing import Any

import torch
from torch import Tensor

from strop.ops.frozen_linear import FrozenWeight, frozen_linear

Rows = tuple[tuple[int, int], ...]


def lora_linear(
    x_TI: Tensor,
    frozen: FrozenWeight,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    rows: Rows,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """See `reference.lora_linear`.

    Args:
        x_TI: Input, in the weight's type.
        frozen: The merged base weight.
        bias_O: Bias of the base layer, also frozen.
        a_RI: The modules' A matrices, one under the other: (modules * r, I).
        b_OR: The modules' B matrices, one under the other: (rows covered, r).
        rows: Output rows [first, last) of each module, in the order of their blocks in A and B.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA.
        dropout: Probability with which an input of A is zeroed.
    """
    a_RI, b_OR = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
    if dropout == 0.0:
        return _LoraLinear.apply(x_TI, frozen, bias_O, a_RI, b_OR, rows, scaling)  # type: ignore[no-any-return, no-untyped-call]
    # PEFT draws a mask for every module, so their products do not share an input and cannot be merged.
    y_TO = frozen_linear(x_TI, frozen, bias_O)
    for (first, last), a, b in _modules(a_RI, b_OR, rows):
        y_TO[:, first:last] += scaling * (torch.nn.functional.dropout(x_TI, dropout) @ a.t()) @ b.t()
    return y_TO


def _modules(a_RI: Tensor, b_OR: Tensor, rows: Rows) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    """Each module's output rows with its own A and B, as views."""
    blocks_a = a_RI.split(b_OR.shape[1])
    blocks_b = b_OR.split([last - first for first, last in rows])
    return list(zip(rows, blocks_a, blocks_b, strict=True))


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        frozen: FrozenWeight,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        rows: Rows,
        scaling: float,
    ) -> Tensor:
        y_TO = frozen.project(x_TI)
        if bias_O is not None:
            y_TO += bias_O
        h_TR = x_TI @ a_RI.t()
        for ((first, last), _, b), h in zip(_modules(a_RI, b_OR, rows), h_TR.split(b_OR.shape[1], 1), strict=True):
            y_TO[:, first:last].addmm_(h, b.t(), alpha=scaling)
        ctx.save_for_backward(x_TI, h_TR, a_RI, b_OR)
        ctx.frozen, ctx.rows, ctx.scaling = frozen, rows, scaling
        return y_TO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, h_TR, a_RI, b_OR = ctx.saved_tensors
        g_TO, scaling, rank = grads[0], ctx.scaling, b_OR.shape[1]
        dh_TR, db_OR = torch.empty_like(h_TR), torch.empty_like(b_OR)
        modules = zip(
            _modules(a_RI, b_OR, ctx.rows),
            h_TR.split(rank, 1),
            dh_TR.split(rank, 1),
            db_OR.split([last - first for first, last in ctx.rows]),
            strict=True,
        )
        for ((first, last), _, b), h, dh, db in modules:
            g = g_TO[:, first:last]
            dh.copy_(g @ b).mul_(scaling)
            torch.mm(g.t(), h, out=db).mul_(scaling)
        da_RI = dh_TR.t() @ x_TI
        dx_TI = ctx.frozen.backproject(g_TO).addmm_(dh_TR, a_RI) if ctx.needs_input_grad[0] else None
        return dx_TI, None, None, da_RI, db_OR, None, None
