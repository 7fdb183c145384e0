"""The loss from hidden states (`ops.linear_cross_entropy`), reading a chunk's logits twice and writing them once.

One program computes a row: its loss, then its gradient in place of the logits. It walks the row's labels in order, so a
position with several labels needs no atomics, and padding is a row without labels.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.linear import FrozenWeight
from strop.ops.linear_cross_entropy import LOGITS_BYTES

_BLOCK = 4096


@triton.jit
def _cross_entropy(logits, offsets, labels, weights, nll, width, BLOCK: tl.constexpr):
    """A row's sum of weight * -log softmax[label]; its logits become the gradient of that."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * width
    first, last = tl.load(offsets + row), tl.load(offsets + row + 1)
    largest, norm = -float("inf"), 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(logits + column, column < width, -float("inf")).to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(value))
        norm = norm * tl.exp(largest - new_largest) + tl.sum(tl.exp(value - new_largest))
        largest = new_largest
    log_norm = largest + tl.log(norm)
    total, weight = 0.0, 0.0
    for i in range(first, last):
        w = tl.load(weights + i)
        total += w * (log_norm - tl.load(logits + tl.load(labels + i)).to(tl.float32))
        weight += w
    tl.store(nll + row, total)
    tl.debug_barrier()  # every logit of a label has been read before any is overwritten
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(logits + column, column < width, -float("inf")).to(tl.float32)
        grad = weight * tl.exp(value - log_norm)
        for i in range(first, last):
            grad -= tl.where(column == tl.load(labels + i), tl.load(weights + i), 0.0)
        tl.store(logits + column, grad, column < width)


def fused_linear_cross_entropy(
    hidden_RD: Tensor, head: FrozenWeight, offsets_R1: Tensor, labels_E: Tensor, weights_E: Tensor
) -> Tensor:
    """See `linear_cross_entropy`; a scalar in float32.

    Args:
        hidden_RD: Final hidden states of the learned positions.
        head: The output projection, (V, D).
        offsets_R1: int32, where each row's labels start; one more entry closes the last row's.
        labels_E: The tokens to predict.
        weights_E: float32, how often each counts; 0 for padding.
    """
    return _FusedLinearCrossEntropy.apply(hidden_RD, head, offsets_R1, labels_E, weights_E)  # type: ignore[no-any-return, no-untyped-call]


class _FusedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, head: FrozenWeight, offsets_R1: Tensor, labels_E: Tensor, weights_E: Tensor
    ) -> Tensor:
        num_rows, width = hidden_RD.shape[0], head.shape[0]
        nll_R = weights_E.new_empty(num_rows)
        grad_RD = torch.empty_like(hidden_RD)
        chunk = max(1, LOGITS_BYTES // (hidden_RD.element_size() * width))
        for start in range(0, num_rows, chunk):
            rows = slice(start, min(start + chunk, num_rows))
            logits_CV = head.project(hidden_RD[rows])
            _cross_entropy[(len(logits_CV),)](
                logits_CV, offsets_R1[start:], labels_E, weights_E, nll_R[rows], width, _BLOCK, num_warps=8
            )
            if ctx.needs_input_grad[0]:
                grad_RD[rows] = head.backproject(logits_CV)  # the logits have become their gradient
        ctx.save_for_backward(grad_RD)
        return nll_R.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_RD,) = ctx.saved_tensors
        return grad_RD * grads[0].to(grad_RD.dtype), None, None, None, None
