"""Causal attention over packed prefix trees, forward and backward, for both short and long samples.

Written for samples of a hundred tokens, where FlashAttention's tiles of 128 are mostly empty, and for prefixes that
are computed once: no library's varlen call supports a key that several samples see.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from strop.microbatch.tree import Tree
from strop.ops.triton.attention_kernels import backward_keys, backward_queries, finish_grad, forward, sum_parts
from strop.ops.triton.attention_plan import KEYS, QUERIES, AttentionPlan, plan_attention
from strop.ops.triton.thin import LowRank, Measured, Parts

_LOG2_E = 1.4426950408889634
_ROWS = 64

_STEP = 32
"""Keys that a tile of queries processes at a time, and queries that a tile of keys does. Compared with 64, on an H200
with head width 96: the queries' gradient of 128 samples behind one header takes 348 us instead of 404, and the other
kernels take up to 11% less."""


def tree_attention(
    qkv_TO: Tensor, plan: AttentionPlan, heads: tuple[int, int], window: int | None, thin_OR: Tensor
) -> tuple[Measured, Tensor]:
    """See `reference.attention`.

    Args:
        qkv_TO: Queries, keys and values side by side, (T, (N + 2 K) H), already rotated.
        plan: The tree's tiles.
        heads: N, K.
        window: A query sees itself and the `window - 1` positions before it; with None, all positions before it.
        thin_OR: (N H, R); the output is multiplied with it for the product that reads the output.

    Returns:
        The output (T, N H), measured, and the log2 of each query's sum of weights, (N, T), float32.
    """
    q, k, v, width = _split(qkv_TO, heads)
    total, num_heads = qkv_TO.shape[0], heads[0]
    out = qkv_TO.new_empty((total, num_heads * width))
    lse_NT = qkv_TO.new_empty((num_heads, total), dtype=torch.float32)
    parts = Parts.new(out, num_heads, thin_OR.shape[1])
    forward[(len(plan.queries), num_heads)](
        q, k, v, out, lse_NT, thin_OR, *parts, plan.queries, plan.path, qkv_TO.stride(0), out.stride(0), total,
        width**-0.5 * _LOG2_E, window or 0, R=thin_OR.shape[1], **_by_queries(plan, width, heads, window),
    )  # fmt: skip
    return Measured(out, parts), lse_NT


def tree_attention_backward(
    grad_TO: Tensor, pending: LowRank, qkv_TO: Tensor, out_TO: Tensor, lse_NT: Tensor,
    plan: AttentionPlan, heads: tuple[int, int], window: int | None,
) -> Tensor:  # fmt: skip
    """The gradients of q, k and v, side by side as in `qkv_TO`.

    Overwrites `grad_TO`, to which `pending`, its low-rank term, is added.
    """
    (num_heads, kv_heads), total = heads, qkv_TO.shape[0]
    dqkv = torch.empty_like(qkv_TO)
    (q, k, v, width), (dq, dk, dv, _) = _split(qkv_TO, heads), _split(dqkv, heads)
    delta_NT = torch.empty_like(lse_NT)
    finish_grad[(triton.cdiv(total, _ROWS), num_heads)](
        grad_TO, *pending, out_TO, delta_NT, total,
        H=width, HP=max(16, triton.next_power_of_2(width)), R=pending.thin_OR.shape[1], ROWS=_ROWS,
    )  # fmt: skip
    strides, scale = (qkv_TO.stride(0), grad_TO.stride(0), total), width**-0.5
    backward_queries[(len(plan.queries), num_heads)](
        q, k, v, grad_TO, lse_NT, delta_NT, dq, plan.queries, plan.path, *strides,
        scale * _LOG2_E, scale, window or 0, **_by_queries(plan, width, heads, window),
    )  # fmt: skip
    parts = qkv_TO.new_empty((plan.num_slots, kv_heads, 2, KEYS, width), dtype=torch.float32)
    backward_keys[(kv_heads, len(plan.keys))](
        q, k, v, grad_TO, lse_NT, delta_NT, dk, dv, parts, plan.keys, plan.positions, *strides,
        scale * _LOG2_E, scale, window or 0, QUERIES=_STEP, KEYS=KEYS, **_shape(plan, width, heads, window),
    )  # fmt: skip
    if len(plan.sums):
        sum_parts[(len(plan.sums), kv_heads)](
            parts, plan.sums, dk, dv, qkv_TO.stride(0), H=width, HP=triton.next_power_of_2(width), KEYS=KEYS
        )
    return dqkv


def packed_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, tree: Tree, window: int | None) -> Tensor:
    """`tree_attention` for autograd, with separate queries, keys and values. Returns (T, N, H)."""
    qkv_TO = torch.cat([x.flatten(1) for x in (q_TNH, k_TKH, v_TKH)], dim=1)
    heads = (q_TNH.shape[1], k_TKH.shape[1])
    plan = _plan_on(tree, qkv_TO.device)
    out_TO: Tensor = _PackedAttention.apply(qkv_TO, plan, heads, window)  # type: ignore[no-untyped-call]
    return out_TO.view(q_TNH.shape)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_TO: Tensor, plan: AttentionPlan, heads: tuple[int, int], window: int | None) -> Tensor:
        width = qkv_TO.shape[1] // (heads[0] + 2 * heads[1])
        no_thin = qkv_TO.new_zeros((heads[0] * width, 16))
        out, lse_NT = tree_attention(qkv_TO, plan, heads, window, no_thin)
        ctx.save_for_backward(qkv_TO, out.x_TI, lse_NT, no_thin)
        ctx.terms = (plan, heads, window)
        return out.x_TI

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        qkv_TO, out_TO, lse_NT, no_thin = ctx.saved_tensors
        nothing = LowRank(qkv_TO.new_zeros((len(qkv_TO), 16)), no_thin)
        grad_TO = grads[0].clone(memory_format=torch.contiguous_format)
        return tree_attention_backward(grad_TO, nothing, qkv_TO, out_TO, lse_NT, *ctx.terms), None, None, None


@lru_cache(maxsize=1)
def _plan_on(tree: Tree, device: torch.device) -> AttentionPlan:
    """A tree's plan on a device; cached, because all layers of a microbatch ask for the same one."""
    with torch.inference_mode(False):  # a later training step may get a plan that an evaluation made
        return plan_attention(tree).to(device)


def _split(qkv_TO: Tensor, heads: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Views of queries, keys and values, and the head width."""
    num_heads, kv_heads = heads
    width = qkv_TO.shape[1] // (num_heads + 2 * kv_heads)
    q, k, v = qkv_TO.split([num_heads * width, kv_heads * width, kv_heads * width], dim=1)
    return q, k, v, width


def _by_queries(plan: AttentionPlan, width: int, heads: tuple[int, int], window: int | None) -> dict[str, Any]:
    """Constants of the kernels whose programs own a tile of queries; four programs share a multiprocessor."""
    few = {"maxnreg": 128} if width <= 96 else {}  # wider heads would spill
    return {"QUERIES": QUERIES, "KEYS": _STEP, "TREE": len(plan.path) > 0, **_shape(plan, width, heads, window), **few}


def _shape(plan: AttentionPlan, width: int, heads: tuple[int, int], window: int | None) -> dict[str, Any]:
    """Constants of all kernels."""
    first = max(16, 1 << (width.bit_length() - 1))
    rest = width - first
    return {
        "GROUPS": heads[0] // heads[1],
        "H": width,
        "H1": first,
        "H2": max(16, triton.next_power_of_2(rest)) if rest > 0 else 0,
        # Phi-3's window of 2,047 tokens hides nothing from shorter samples, and checking costs a third of the time.
        "WINDOWED": window is not None and plan.longest > window,
        "num_stages": 3,
    }
