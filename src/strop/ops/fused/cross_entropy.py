"""The loss of a chunk of logits and its gradient, in two passes over them and written where they were."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _cross_entropy(logits, offsets, labels, weights, nll, width, BLOCK: tl.constexpr):
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


def cross_entropy_(logits_RV: Tensor, offsets_R1: Tensor, labels_E: Tensor, weights_E: Tensor) -> Tensor:
    """Each row's sum of weight * -log softmax[label]; the logits become the gradient of those sums.

    Args:
        logits_RV: Overwritten.
        offsets_R1: int32, where each row's labels start; one more entry closes the last row's.
        labels_E: int64.
        weights_E: float32; a row may have several labels, or weights of zero.
    """
    nll_R = weights_E.new_empty(logits_RV.shape[0])
    _cross_entropy[(logits_RV.shape[0],)](
        logits_RV, offsets_R1, labels_E, weights_E, nll_R, logits_RV.shape[1], _BLOCK, num_warps=8
    )
    return nll_R
