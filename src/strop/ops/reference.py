"""What every op computes, in plain PyTorch. Slow, readable, differentiable: the specification.

Nothing here is called in training; the tests compare the fast forms with it, in float64 where they can.
"""

import torch
from torch import Tensor

IGNORE_INDEX = -100


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    Statistics are taken in float32 at least, as the models were trained.
    """
    wide = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * normed.to(x_TD.dtype)


def rotary(x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first 2R of the H channels by position (Su et al. 2021, arXiv 2104.09864).

    Channel i is paired with channel i + R, as Hugging Face checkpoints are laid out; the rest passes through.
    """
    half = cos_TR.shape[-1]
    first, second, rest = x_TNH[..., :half], x_TNH[..., half : 2 * half], x_TNH[..., 2 * half :]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def swiglu(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up, gate and up side by side (Shazeer 2020, arXiv 2002.05202)."""
    gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_TF) * up_TF


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: tuple[int, ...], window: int | None) -> Tensor:
    """Causal attention inside each packed sample, softmax(q k^T / sqrt(H)) v; samples never see each other.

    Args:
        q_TNH: Queries, packed one sample after the other; N is a multiple of K.
        k_TKH: Keys, likewise.
        v_TKH: Values, likewise.
        lengths: Tokens of each sample; they add up to T.
        window: A query sees itself and the `window - 1` tokens before it; None sees all before it.
    """
    total, num_heads, width = q_TNH.shape
    sample = torch.repeat_interleave(torch.tensor(lengths, device=q_TNH.device))
    position = torch.arange(total, device=q_TNH.device)
    visible = (sample[:, None] == sample[None, :]) & (position[:, None] >= position[None, :])
    if window is not None:
        visible &= position[:, None] - position[None, :] < window
    groups = num_heads // k_TKH.shape[1]
    k_TNH, v_TNH = (x.repeat_interleave(groups, dim=1) for x in (k_TKH, v_TKH))
    scores = torch.einsum("qnh,knh->nqk", q_TNH, k_TNH) * width**-0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("nqk,knh->qnh", weights, v_TNH)


def lora_linear(
    x_TI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    rows: tuple[tuple[int, int], ...],
    scaling: float,
) -> Tensor:
    """A frozen linear plus low-rank terms on some of its output rows (Hu et al. 2021, arXiv 2106.09685).

    Several checkpoint modules that read the same x (q, k, v; gate, up) are one frozen matrix here. Module i owns
    output rows `rows[i]`, the i-th block of r rows of `a_RI` and the matching rows of `b_OR`:
    y[:, rows[i]] += scaling * (x A_i^T) B_i^T.
    """
    y_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    rank = b_OR.shape[1]
    delta, start = torch.zeros_like(y_TO), 0
    for i, (first, last) in enumerate(rows):
        a, b = a_RI[i * rank : (i + 1) * rank], b_OR[start : start + last - first]
        delta[:, first:last] = scaling * (x_TI @ a.T) @ b.T
        start += last - first
    return y_TO + delta


def linear_cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(hidden W^T)[label]; tokens labelled IGNORE_INDEX count nothing."""
    logits_TV = torch.nn.functional.linear(hidden_TD, weight_VD)
    wide = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, labels_T, ignore_index=IGNORE_INDEX, reduction="sum")
