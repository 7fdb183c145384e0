"""Causal attention over packed samples: each sample sees only itself; a prefix that several share is present once.

On a GPU in bfloat16, a few kernels compute a whole microbatch (`ops.triton.attention`). Elsewhere, PyTorch's attention
is called once for each node of the prefix tree. On a CPU these small calls cost under 2% of a layer, and they need no
padding.
"""

import torch
from torch import Tensor

from strop.microbatch.tree import Tree


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, tree: Tree, window: int | None) -> Tensor:
    """See `reference.attention`. Returns (T, N, H)."""
    if q_TNH.is_cuda and q_TNH.dtype == torch.bfloat16:
        from strop.ops.triton.attention import packed_attention  # needs Triton, which torch's CPU builds lack

        return packed_attention(q_TNH, k_TKH, v_TKH, tree, window)
    # A node's keys are concatenated from the pieces of `split`, whose backward adds up the pieces' gradients one after
    # the other: no indexing, no atomics, the same bits every time.
    q, k, v = (x.split(tree.lengths) for x in (q_TNH, k_TKH, v_TKH))
    return torch.cat([_one_node(q[path[-1]], _along(k, path), _along(v, path), window) for path in tree.paths])


def _along(pieces: tuple[Tensor, ...], path: tuple[int, ...]) -> Tensor:
    return pieces[path[0]] if len(path) == 1 else torch.cat([pieces[node] for node in path])


def _one_node(q_LNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, window: int | None) -> Tensor:
    """Attention of the last L of a path's P positions, which also see the positions before them."""
    length, total = q_LNH.shape[0], k_PKH.shape[0]
    mask = None
    if length < total or (window is not None and total > window):
        key = torch.arange(total, device=q_LNH.device)
        distance = key[total - length :, None] - key
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    out_NLH = torch.nn.functional.scaled_dot_product_attention(
        q_LNH.transpose(0, 1),
        k_PKH.transpose(0, 1),
        v_PKH.transpose(0, 1),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_LNH.shape[1] != k_PKH.shape[1],
    )
    return out_NLH.transpose(0, 1)
