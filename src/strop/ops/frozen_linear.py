"""A linear layer whose weight is never trained: two products, and never the third.

Every frozen matrix of a model is a `FrozenWeight`. A new storage format (FP8, NF4) is a class with the same two
methods and a line in `model.weights` that picks it; no caller changes.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FrozenWeight(nn.Module):
    """A dense (O, I) matrix in float64, float32 or bfloat16."""

    weight: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight_OI, persistent=False)

    def project(self, x_TI: Tensor) -> Tensor:
        """X W^T, shape (T, O)."""
        return torch.mm(x_TI, self.weight.t())

    def backproject(self, grad_TO: Tensor) -> Tensor:
        """Grad W, shape (T, I): the gradient of `project` with respect to its input."""
        return torch.mm(grad_TO, self.weight)


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
