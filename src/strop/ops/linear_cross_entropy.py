"""The loss from hidden states, without ever holding all the logits.

The gradient of the loss with respect to a chunk's logits is softmax - onehot, known as soon as the chunk's logits
are; so the forward goes on to grad_hidden = (softmax - onehot) W at once and drops the logits. What is kept for
the backward is one (T, D) tensor, which the backward scales. Same idea as Liger's fused linear cross-entropy
(Hsu et al. 2024, arXiv 2410.10989), for a head that is frozen.
"""

from typing import Any

import torch
from torch import Tensor

from strop.ops.frozen_linear import FrozenWeight

_LOGITS_BYTES = 256 << 20
"""Float32 logits held at a time: large enough to fill a GPU, small beside the activations of the layers."""


def linear_cross_entropy(hidden_TD: Tensor, head: FrozenWeight, labels_T: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden W^T)[label], a scalar in float32 or wider.

    Args:
        hidden_TD: Final hidden states of the positions that are learned, and of no others.
        head: The output projection, (V, D).
        labels_T: int64, the token each position must predict. Unlike the reference, no label may be ignored:
            callers drop those positions before the last projection.
    """
    return _LinearCrossEntropy.apply(hidden_TD, head, labels_T)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head: FrozenWeight, labels_T: Tensor) -> Tensor:
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_TD.device)
        grad_TD = torch.empty_like(hidden_TD) if ctx.needs_input_grad[0] else None
        chunk = max(1, _LOGITS_BYTES // (4 * head.weight.shape[0]))
        for start in range(0, hidden_TD.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits_TV = head.project(hidden_TD[rows]).to(wide)
            labels = labels_T[rows, None]
            log_norm = logits_TV.logsumexp(-1, keepdim=True)
            total += (log_norm - logits_TV.gather(1, labels)).sum()
            if grad_TD is not None:
                probabilities = logits_TV.sub_(log_norm).exp_()
                probabilities.scatter_add_(1, labels, probabilities.new_full(labels.shape, -1.0))
                grad_TD[rows] = head.backproject(probabilities.to(hidden_TD.dtype))
        ctx.save_for_backward(grad_TD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_TD,) = ctx.saved_tensors
        return grad_TD * grads[0].to(grad_TD.dtype), None, None
