"""What every op computes, in plain PyTorch. Slow, readable, differentiable: the specification.

Nothing here is called in training; the tests compare the fast forms with it, in float64 where they can.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from strop.ops.blockwise import dynamic_code
from strop.ops.nf4 import LEVELS


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


def attention(
    q_TNH: Tensor,
    k_TKH: Tensor,
    v_TKH: Tensor,
    lengths: tuple[int, ...],
    window: int | None,
    parents: tuple[int, ...] | None = None,
) -> Tensor:
    """Causal attention inside each packed sample, softmax(q k^T / sqrt(H)) v; samples never see each other.

    Samples that share a prefix form a tree of nodes: a token sees those before it in its own node, and all of the
    nodes on the path to the root.

    Args:
        q_TNH: Queries, packed one node after the other; N is a multiple of K.
        k_TKH: Keys, likewise.
        v_TKH: Values, likewise.
        lengths: Tokens of each node; they add up to T.
        window: A query sees itself and the `window - 1` tokens before it in the sample; None sees all before it.
        parents: Index of each node's parent, smaller than its own, or -1. None: every node is a sample of its own.
    """
    total, num_heads, width = q_TNH.shape
    nodes = len(lengths)
    above = torch.eye(nodes, dtype=torch.bool)  # above[i, j]: j is i or one of its ancestors
    depth = torch.zeros(nodes, dtype=torch.int64)
    for node, parent in enumerate(parents or ()):
        if parent >= 0:
            above[node] |= above[parent]
            depth[node] = depth[parent] + lengths[parent]
    node_T = torch.repeat_interleave(torch.tensor(lengths))
    start = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    position_T = torch.arange(total) - start[node_T] + depth[node_T]
    distance = position_T[:, None] - position_T[None, :]
    visible = above[node_T][:, node_T] & (distance >= 0)
    if window is not None:
        visible &= distance < window
    visible = visible.to(q_TNH.device)
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


def mix(x: int) -> int:
    """32 bits, thoroughly mixed: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = ((x ^ x >> 16) * 0x85EBCA6B) % 2**32
    x = ((x ^ x >> 13) * 0xC2B2AE35) % 2**32
    return x ^ x >> 16


def dropout(x_TI: Tensor, samples: Sequence[int], positions: Sequence[int], seed: int, p: float) -> Tensor:
    """Numbers zeroed with probability p, the others divided by 1 - p (Srivastava et al. 2014).

    Whether a number is zeroed is a function of its token's sample and position, of its column, and of the seed.
    """
    factor_TI = torch.zeros_like(x_TI)
    for t, (sample, position) in enumerate(zip(samples, positions, strict=True)):
        row = mix((mix((mix(sample) + position) % 2**32) + seed) % 2**32)
        for i in range(x_TI.shape[1]):
            if mix((row + i * 0x9E3779B1) % 2**32) >> 8 >= round(p * 2**24):
                factor_TI[t, i] = 1 / (1 - p)
    return x_TI * factor_TI


def linear_cross_entropy(
    hidden_RD: Tensor, weight_VD: Tensor, rows_E: Tensor, labels_E: Tensor, weights_E: Tensor
) -> Tensor:
    """Sum over entries of weight * -log softmax(hidden W^T)[row, label]; a row may have several labels."""
    logits_RV = torch.nn.functional.linear(hidden_RD, weight_VD)
    log_p_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32)).log_softmax(-1)
    return -(weights_E * log_p_RV[rows_E, labels_E]).sum()


def nf4(weight: Tensor) -> Tensor:
    """A matrix rounded to NF4 without double quantisation (Dettmers et al. 2023, arXiv 2305.14314).

    In blocks of 64 of the flattened matrix: the nearest of 16 levels times the block's largest magnitude.
    """
    levels = torch.tensor(LEVELS, dtype=weight.dtype)
    rounded = []
    for block in weight.reshape(-1).split(64):
        largest = block.abs().max()
        nearest = (block[:, None] - levels * largest).abs().argmin(1)
        rounded.append(levels[nearest] * largest)
    return torch.cat(rounded).view(weight.shape)


def round_to_8_bits(x_N: Tensor, signed: bool) -> Tensor:
    """Numbers rounded to bitsandbytes' dynamic code: in blocks of 256, the nearest entry times the largest."""
    code = dynamic_code(signed, x_N.device).to(x_N.dtype)
    rounded = []
    for block in x_N.split(256):
        largest = block.abs().max()
        rounded.append(code[(block[:, None] - code * largest).abs().argmin(1)] * largest)
    return torch.cat(rounded)


def adamw_8bit(
    parameter_N: Tensor,
    grads_N: list[Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    learning_rate: float,
) -> Tensor:
    """AdamW (arXiv 1711.05101) whose moments are rounded to 8 bits after each update (arXiv 2110.02861)."""
    mean, square = torch.zeros_like(parameter_N), torch.zeros_like(parameter_N)
    for step, grad in enumerate(grads_N, 1):
        mean, square = beta1 * mean + (1 - beta1) * grad, beta2 * square + (1 - beta2) * grad**2
        unbiased, root = mean / (1 - beta1**step), (square / (1 - beta2**step)).sqrt()
        parameter_N = parameter_N * (1 - learning_rate * weight_decay) - learning_rate * unbiased / (root + eps)
        mean, square = round_to_8_bits(mean, True), round_to_8_bits(square, False)
    return parameter_N
