"""A `flash_attn` package built on torch's own FlashAttention-2 kernels, for trainers that look for it by name.

flash-attn has no wheel for torch 2.11, and without it Unsloth and TRL run a third slower than their users see. torch
ships the same kernels, so this file, installed under that name in a folder of its own, makes them available. It has
only what the training of a causal language model calls; anything else raises.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

__version__ = "2.8.3"
_INFO = f"flash_attn-{__version__}.dist-info"
PACKAGE = {
    "flash_attn/flash_attn_interface.py": "from flash_attn import *\n\nflash_attn_gpu = None\n",
    "flash_attn/bert_padding.py": "from transformers.modeling_flash_attention_utils import (\n"
    "    _index_first_axis as index_first_axis, _pad_input as pad_input, _unpad_input as unpad_input\n)\n",
    f"{_INFO}/METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {__version__}\n",
    f"{_INFO}/top_level.txt": "flash_attn\n",
}


def install(folder: Any) -> None:
    """Write the package into a folder, which should then come first on PYTHONPATH."""
    from pathlib import Path

    for name, text in {"flash_attn/__init__.py": Path(__file__).read_text("utf-8"), **PACKAGE}.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """(T, N, H) and the sequences' offsets in it -> (T, N, H)."""
    _reject(dropout_p, softcap, alibi_slopes, return_attn_probs, block_table)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # torch 2.11's call takes equal head counts only
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return varlen_attn(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        int(max_seqlen_q),
        int(max_seqlen_k),
        scale=softmax_scale,
        window_size=_window(causal, window_size, int(max_seqlen_k)),
    )


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """(B, L, N, H) -> (B, L, N, H)."""
    _reject(dropout_p, softcap, alibi_slopes, return_attn_probs, None)
    if _window(causal, window_size, k.shape[1])[0] != -1:
        raise NotImplementedError("a sliding window shorter than the sequence")
    if q.shape[2] != k.shape[2]:  # enable_gqa would not be a constant under torch.compile
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, scale=softmax_scale
        )
    return out.transpose(1, 2)


def flash_attn_with_kvcache(*args: Any, **kwargs: Any) -> Tensor:
    """For generation, which no benchmark uses."""
    raise NotImplementedError("flash_attn_with_kvcache")


def _window(causal: bool, window_size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Like flash-attn itself, treat a window that contains every key as no window."""
    left, right = (-1 if side >= longest else side for side in window_size)
    return left, 0 if causal else right


def _reject(dropout_p: float, *others: Any) -> None:
    if dropout_p or any(others):
        raise NotImplementedError("dropout, softcap, alibi, attention probabilities and paged caches")
