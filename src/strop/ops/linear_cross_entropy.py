"""The loss from hidden states, without ever holding all the logits.

The gradient of the loss with respect to a chunk's logits is weight * (softmax - onehot), known as soon as the chunk's
logits are; so the forward computes grad_hidden = (softmax - onehot) W at once and drops the logits. Only one (R, D)
tensor is kept, which the backward scales. Same idea as Liger's fused linear cross-entropy
(Hsu et al. 2024, arXiv 2410.10989), for a head that is frozen.

A position that several samples share may have several labels, one for each token that follows it. Its gradient is
(sum of its weights) * softmax - sum of weight * onehot(label).
"""

from typing import Any

import torch
from torch import Tensor

from strop.ops.linear import FrozenWeight

LOGITS_BYTES = 256 << 20
"""Logits in memory at a time: large enough to fill a GPU, small beside the activations of the layers."""


def linear_cross_entropy(
    hidden_RD: Tensor, head: FrozenWeight, rows_E: Tensor, labels_E: Tensor, weights_E: Tensor
) -> Tensor:
    """Sum over entries of weight * -log softmax(hidden W^T)[row, label], a scalar in float32 or wider.

    Args:
        hidden_RD: Final hidden states of the positions that are learned, and of no others.
        head: The output projection, (V, D).
        rows_E: int64, the row of `hidden_RD` that each entry belongs to. Every row has an entry.
        labels_E: int64, the token it must predict; no row has the same one twice.
        weights_E: How often it counts: whole numbers from 1 on.
    """
    return _LinearCrossEntropy.apply(hidden_RD, head, rows_E, labels_E, weights_E)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def label_nll(hidden_RD: Tensor, head: FrozenWeight, rows_E: Tensor, labels_E: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each entry of `linear_cross_entropy` by itself; `rows_E` must be non-decreasing.

    Returns:
        -log softmax(hidden W^T)[row, label], (E,) in float32 or wider; and bool (E,), true if no token is likelier.
    """
    wide = torch.promote_types(hidden_RD.dtype, torch.float32)
    chunk = _rows_at_a_time(head)
    nll, likeliest = [], []
    for start in range(0, hidden_RD.shape[0], chunk):
        logits_CV = head.project(hidden_RD[start : start + chunk]).to(wide)
        entries = (rows_E >= start) & (rows_E < start + chunk)
        row_C = rows_E[entries] - start
        logit_C = logits_CV[row_C, labels_E[entries]]
        nll.append(logits_CV.logsumexp(-1)[row_C] - logit_C)
        likeliest.append(logit_C >= logits_CV.amax(-1)[row_C])
    return torch.cat(nll), torch.cat(likeliest)


def _rows_at_a_time(head: FrozenWeight) -> int:
    return max(1, LOGITS_BYTES // (4 * head.weight.shape[0]))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, head: FrozenWeight, rows_E: Tensor, labels_E: Tensor, weights_E: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_RD.device)
        grad_RD = torch.empty_like(hidden_RD) if ctx.needs_input_grad[0] else None
        weights_E = weights_E.to(wide)
        # Entries of one row meet here, and atomics add in any order; sums of whole numbers are exact in every order.
        log_weight_R = total.new_zeros(hidden_RD.shape[0]).index_add_(0, rows_E, weights_E).log_()
        chunk = _rows_at_a_time(head)
        for start in range(0, hidden_RD.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits_CV = head.project(hidden_RD[rows]).to(wide)
            # Only the device knows which entries are this chunk's, and asking it would stall the host. So all of them
            # take part, those of other chunks with weight 0.
            row_E = (rows_E - start).clamp(0, logits_CV.shape[0] - 1)
            weight_E = weights_E * (row_E == rows_E - start)
            log_norm_C = logits_CV.logsumexp(-1)
            total += ((log_norm_C[row_E] - logits_CV[row_E, labels_E]) * weight_E).sum()
            if grad_RD is not None:
                # weight * softmax = exp(logit - log norm + log weight): no extra pass over the logits
                grad_CV = logits_CV.sub_((log_norm_C - log_weight_R[rows])[:, None]).exp_()
                # Each element gets one entry of this chunk and otherwise zeros, so the order makes no difference.
                grad_CV.view(-1).index_add_(0, row_E * logits_CV.shape[1] + labels_E, weight_E, alpha=-1)
                grad_RD[rows] = head.backproject(grad_CV.to(hidden_RD.dtype))
        ctx.save_for_backward(grad_RD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_RD,) = ctx.saved_tensors
        return grad_RD * grads[0].to(grad_RD.dtype), None, None, None, None
