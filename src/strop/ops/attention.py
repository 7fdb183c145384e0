"""Causal attention over packed samples: each sample sees itself and nothing else.

On a GPU in bfloat16 one variable-length FlashAttention call does the whole microbatch. Elsewhere each sample is a
call of its own to PyTorch's attention; a list of small calls costs under 2% of a layer on a CPU and wastes no
padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """How T tokens divide into samples, known to the host and to the device.

    Attributes:
        lengths: Tokens of each sample.
        cu_seqlens: int32 (S + 1,): where each sample starts, and T at the end.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device | str = "cpu") -> "Packing":
        """The packing of samples of these lengths, its offsets on `device`."""
        ends = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(lengths, ends.to(device, non_blocking=True))


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, packing: Packing, window: int | None) -> Tensor:
    """See `reference.attention`. Returns (T, N, H)."""
    if q_TNH.is_cuda and q_TNH.dtype in (torch.bfloat16, torch.float16):
        return _flash_varlen(q_TNH, k_TKH, v_TKH, packing, window)
    outputs = [
        _one_sample(q, k, v, window)
        for q, k, v in zip(*(x.split(packing.lengths) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
    ]
    return torch.cat(outputs)


def _one_sample(q_LNH: Tensor, k_LKH: Tensor, v_LKH: Tensor, window: int | None) -> Tensor:
    length = q_LNH.shape[0]
    mask = None
    if window is not None and length > window:
        position = torch.arange(length, device=q_LNH.device)
        distance = position[:, None] - position[None, :]
        mask = (distance >= 0) & (distance < window)
    out_NLH = torch.nn.functional.scaled_dot_product_attention(
        q_LNH.transpose(0, 1),
        k_LKH.transpose(0, 1),
        v_LKH.transpose(0, 1),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_LNH.shape[1] != k_LKH.shape[1],
    )
    return out_NLH.transpose(0, 1)


def _flash_varlen(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, packing: Packing, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(packing.lengths)
    groups = q_TNH.shape[1] // k_TKH.shape[1]
    if groups > 1:  # torch 2.11's call takes equal head counts only
        k_TKH, v_TKH = (x.repeat_interleave(groups, dim=1) for x in (k_TKH, v_TKH))
    out_TNH = varlen_attn(
        q_TNH,
        k_TKH,
        v_TKH,
        packing.cu_seqlens,
        packing.cu_seqlens,
        longest,
        longest,
        window_size=(-1 if window is None else window - 1, 0),
    )
    assert isinstance(out_TNH, Tensor)  # a tuple only where more than the output is asked for
    return out_TNH
