"""Linear layers whose weight is never trained: two products, and never the third; alone or with LoRA's terms.

Every frozen matrix of a model is a `FrozenWeight`; how it is stored is its own business. A new storage format is a
class with the same products and a line in `model.pretrained.weights` that picks it; no caller changes.

`lora_linear` is a frozen linear and the LoRA terms of every module merged into it, as one op with its own backward.
Autograd on the plain form would keep y twice, add into a fresh copy and compute each module's product on its own.
Here the low-rank terms are added into y in place, all A products are one matrix product, and only x and
h = x A^T are kept for the backward. With g the gradient of y, s the scaling and i a module:

    dh_i = s g_i B_i        dB_i = s g_i^T h_i        dA = dh^T x        dx = g W + dh A
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Rows = tuple[tuple[int, int], ...]

FLOAT8_MAX = 448.0
"""The largest number of float8_e4m3fn."""


class Operand(NamedTuple):
    """What a frozen product reads: (T, I) values, with one float32 scale per row if they are float8."""

    values: Tensor
    scale_T: Tensor | None = None


class FrozenWeight(nn.Module):
    """A dense (O, I) matrix in float64, float32 or bfloat16.

    Attributes:
        float8: Operands must be quantised.
        kind: The recipe's name for the storage format, if that is not simply the type.
    """

    weight: Tensor
    float8 = False
    kind: str | None = None

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI, persistent=False)
        self.shape = weight_OI.shape

    def product(self, x: Operand) -> Tensor:
        """X W^T, shape (T, O)."""
        return torch.mm(x.values, self.weight.t())

    def product_back(self, grad: Operand) -> Tensor:
        """Grad W, shape (T, I): the gradient of `product` with respect to x."""
        return torch.mm(grad.values, self.weight)

    def project(self, x_TI: Tensor) -> Tensor:
        """`product` of a plain tensor."""
        return self.product(Operand(x_TI))

    def backproject(self, grad_TO: Tensor) -> Tensor:
        """`product_back` of a plain tensor."""
        return self.product_back(Operand(grad_TO))


class Float8Weight(FrozenWeight):
    """A dense (O, I) matrix in float8 (e4m3), kept twice: by rows for the product, by columns for its gradient.

    Each row of both copies has a float32 scale, and so does each row of the other factor. Hopper's float8 units read
    both factors only along the summed axis, hence the second copy; together they are as large as bfloat16. On an H200
    at Phi-3-mini's shapes, all products of 14,336 tokens take 161 ms with a scale per row, 164 with one per tensor and
    189 with DeepSeek's 1 x 128 blocks.
    """

    weight_t: Tensor
    scale_O: Tensor
    scale_I: Tensor
    float8 = True
    kind = "float8"

    def __init__(self, weight_OI: Tensor) -> None:
        nn.Module.__init__(self)
        self.shape = weight_OI.shape
        for name, scale, matrix in (
            ("weight", "scale_O", weight_OI),
            ("weight_t", "scale_I", weight_OI.t().contiguous()),
        ):
            values, scale_rows = quantise_rows(matrix)
            self.register_buffer(name, values, persistent=False)
            self.register_buffer(scale, scale_rows, persistent=False)

    def product(self, x: Operand) -> Tensor:
        """X W^T in bfloat16, shape (T, O)."""
        return _scaled_product(x, self.weight, self.scale_O)

    def product_back(self, grad: Operand) -> Tensor:
        """Grad W in bfloat16, shape (T, I)."""
        return _scaled_product(grad, self.weight_t, self.scale_I)

    def error(self, weight_OI: Tensor) -> float:
        """The error of the worse copy against the matrix it was made from: the root mean square over entries.

        Each entry's error is relative to the entry. Relative to the matrix's norm, an outlier that sets the scale of
        its row and leaves nothing of the other entries would go unnoticed, because it is most of the norm.
        """
        copies = ((self.weight, self.scale_O, weight_OI), (self.weight_t, self.scale_I, weight_OI.t()))
        return max(_entry_error(q.float() * scale[:, None], matrix.float()) for q, scale, matrix in copies)

    def project(self, x_TI: Tensor) -> Tensor:
        """`product` of a plain tensor, quantised here."""
        return self.product(quantise_rows(x_TI))

    def backproject(self, grad_TO: Tensor) -> Tensor:
        """`product_back` of a plain tensor, quantised here."""
        return self.product_back(quantise_rows(grad_TO))


def _entry_error(rounded: Tensor, exact: Tensor) -> float:
    relative = torch.where(exact == 0, 0.0, (rounded - exact) / exact)
    return float(relative.square().mean().sqrt())


def quantise_rows(x_TI: Tensor) -> Operand:
    """Float8 values and one scale per row: a row's largest magnitude becomes float8's largest number."""
    wide = x_TI.float()
    scale_T = wide.abs().amax(1).clamp(min=1e-30) / FLOAT8_MAX
    return Operand((wide / scale_T[:, None]).to(torch.float8_e4m3fn), scale_T)


def _scaled_product(x: Operand, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    assert x.scale_T is not None
    return torch._scaled_mm(
        x.values,
        weight_OI.t(),
        scale_a=x.scale_T[:, None],
        scale_b=scale_O[None, :],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def frozen_linear(x_TI: Tensor, frozen: FrozenWeight, bias_O: Tensor | None = None) -> Tensor:
    """X W^T + b, differentiable in x alone."""
    return _FrozenLinear.apply(x_TI, frozen, bias_O)  # type: ignore[no-any-return, no-untyped-call]


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, frozen: FrozenWeight, bias_O: Tensor | None) -> Tensor:
        ctx.frozen = frozen
        y_TO = frozen.project(x_TI)
        return y_TO if bias_O is None else y_TO.add_(bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.frozen.backproject(grads[0]), None, None


def lora_linear(
    x_TI: Tensor,
    frozen: FrozenWeight,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    rows: Rows,
    scaling: float,
    drop: Callable[[int, Tensor], Tensor] | None = None,
    share_T1: Tensor | None = None,
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
        drop: LoRA's dropout: a module's index and its input -> what its A gets. None means the input itself.
        share_T1: 1 for rows that get the low-rank terms, 0 for rows of the base model; None means that all get them.
            Not differentiable.
    """
    a_RI, b_OR = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
    if share_T1 is not None:
        y_TO, h_TR = frozen_linear(x_TI, frozen, bias_O), (x_TI @ a_RI.t()).mul_(share_T1)
        _add_modules(y_TO, h_TR, b_OR, rows, scaling)
        return y_TO
    if drop is None:
        return _LoraLinear.apply(x_TI, frozen, bias_O, a_RI, b_OR, rows, scaling)  # type: ignore[no-any-return, no-untyped-call]
    # PEFT draws a mask for every module, so their products do not share an input and cannot be merged.
    y_TO = frozen_linear(x_TI, frozen, bias_O)
    for module, ((first, last), a, b) in enumerate(_modules(a_RI, b_OR, rows)):
        y_TO[:, first:last] += scaling * (drop(module, x_TI) @ a.t()) @ b.t()
    return y_TO


def _modules(a_RI: Tensor, b_OR: Tensor, rows: Rows) -> list[tuple[tuple[int, int], Tensor, Tensor]]:
    """Each module's output rows with its own A and B, as views."""
    blocks_a = a_RI.split(b_OR.shape[1])
    blocks_b = b_OR.split([last - first for first, last in rows])
    return list(zip(rows, blocks_a, blocks_b, strict=True))


def _add_modules(y_TO: Tensor, h_TR: Tensor, b_OR: Tensor, rows: Rows, scaling: float) -> None:
    """Add each module's low-rank term into its rows of the output."""
    blocks_b = b_OR.split([last - first for first, last in rows])
    for (first, last), b, h in zip(rows, blocks_b, h_TR.split(b_OR.shape[1], 1), strict=True):
        y_TO[:, first:last].addmm_(h, b.t(), alpha=scaling)


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
        _add_modules(y_TO, h_TR, b_OR, rows, scaling)
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
