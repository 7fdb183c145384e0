"""Queries, keys and values made ready for attention in place: low-rank term added, queries and keys turned."""

import triton
import triton.language as tl
from torch import Tensor

from strop.ops.fused.thin import (
    ROWS,
    LowRank,
    Measured,
    Parts,
    add_low_rank,
    add_thin_product,
    block_rows,
    rows_of,
    store_parts,
)

_HEADS_EACH = 8
"""Heads of one program."""


@triton.jit
def _angles(cos, sin, row, real, channel, half):
    """Cosines and sines of these rows' positions."""
    place, mask = row[:, None] * half + channel[None, :], real[:, None] & (channel < half)[None, :]
    return tl.load(cos + place, mask, 0.0).to(tl.float32), tl.load(sin + place, mask, 0.0).to(tl.float32)


@triton.jit
def _finish_qkv(
    qkv, h, thin, cos, sin, rows, half, turned_heads,
    HEADS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, HEADS_EACH: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    channel = tl.arange(0, HALF)
    h_tile = rows_of(h, row, real, R)
    c, s = _angles(cos, sin, row, real, channel, half)
    x = qkv + row[:, None] * (HEADS * H) + channel[None, :]
    for head in range(tl.program_id(1) * HEADS_EACH, tl.minimum((tl.program_id(1) + 1) * HEADS_EACH, HEADS)):
        mask = real[:, None] & (channel < half)[None, :]
        head_thin = thin + head * H * R
        first = tl.load(x + head * H, mask, 0.0).to(tl.float32)
        second = tl.load(x + head * H + half, mask, 0.0).to(tl.float32)
        first = add_low_rank(first, h_tile, head_thin, channel, half, R)
        second = add_low_rank(second, h_tile, head_thin + half * R, channel, half, R)
        if head < turned_heads:
            turned = first * c - second * s
            second = second * c + first * s
            first = turned
        tl.store(x + head * H, first, mask)
        tl.store(x + head * H + half, second, mask)
        if REST > 0:  # partial rotary: the last channels are not turned
            rest_channel = 2 * half + tl.arange(0, REST)
            rest_mask = real[:, None] & (rest_channel < H)[None, :]
            place = qkv + row[:, None] * (HEADS * H) + head * H + rest_channel[None, :]
            rest = tl.load(place, rest_mask, 0.0).to(tl.float32)
            tl.store(place, add_low_rank(rest, h_tile, head_thin, rest_channel, H, R), rest_mask)


@triton.jit
def _turn_back(
    grad, cos, sin, thin, largest_parts, product_parts, rows, half, turned_heads,
    HEADS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, HEADS_EACH: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    channel = tl.arange(0, HALF)
    c, s = _angles(cos, sin, row, real, channel, half)
    largest, product = tl.zeros([ROWS, HALF], tl.float32), tl.zeros([ROWS, R], tl.float32)
    if REST > 0:
        largest_rest = tl.zeros([ROWS, REST], tl.float32)
    x = grad + row[:, None] * (HEADS * H) + channel[None, :]
    for head in range(tl.program_id(1) * HEADS_EACH, tl.minimum((tl.program_id(1) + 1) * HEADS_EACH, HEADS)):
        mask = real[:, None] & (channel < half)[None, :]
        head_thin = thin + head * H * R
        first, second = tl.load(x + head * H, mask, 0.0), tl.load(x + head * H + half, mask, 0.0)
        if head < turned_heads:
            turned = first.to(tl.float32) * c + second.to(tl.float32) * s
            second = (second.to(tl.float32) * c - first.to(tl.float32) * s).to(first.dtype)
            first = turned.to(first.dtype)
            tl.store(x + head * H, first, mask)
            tl.store(x + head * H + half, second, mask)
        product = add_thin_product(product, first, head_thin, channel, half, R)
        product = add_thin_product(product, second, head_thin + half * R, channel, half, R)
        larger = tl.maximum(tl.abs(first.to(tl.float32)), tl.abs(second.to(tl.float32)))
        largest = tl.maximum(largest, larger)
        if REST > 0:
            rest_channel = 2 * half + tl.arange(0, REST)
            place = grad + row[:, None] * (HEADS * H) + head * H + rest_channel[None, :]
            rest = tl.load(place, real[:, None] & (rest_channel < H)[None, :], 0.0)
            product = add_thin_product(product, rest, head_thin, rest_channel, H, R)
            largest_rest = tl.maximum(largest_rest, tl.abs(rest.to(tl.float32)))
    most = tl.max(largest, 1)
    if REST > 0:
        most = tl.maximum(most, tl.max(largest_rest, 1))
    store_parts(largest_parts, product_parts, row, real, rows, most, product, R)


def finish_qkv(qkv_TO: Tensor, pending: LowRank, cos_TR: Tensor, sin_TR: Tensor, heads: int, turned_heads: int) -> None:
    """Add `pending` to a merged q, k, v product in place and turn its first `turned_heads` heads, queries and keys.

    Args:
        qkv_TO: (T, heads * H).
        pending: Its low-rank term.
        cos_TR: (T, half) cosines; 2 half may be less than H, and the remaining channels are left as they are.
        sin_TR: Sines.
        heads: Heads of queries, keys and values together.
        turned_heads: Heads of queries and keys.
    """
    rows, width, half = qkv_TO.shape[0], qkv_TO.shape[1] // heads, cos_TR.shape[1]
    _finish_qkv[(triton.cdiv(rows, ROWS), triton.cdiv(heads, _HEADS_EACH))](
        qkv_TO, *pending, cos_TR, sin_TR, rows, half, turned_heads, **_shape(heads, width, half, pending.thin_OR)
    )


def turn_back(
    grad_TO: Tensor, cos_TR: Tensor, sin_TR: Tensor, heads: int, turned_heads: int, thin_OR: Tensor
) -> Measured:
    """The rotation's backward, in place, and the result measured: queries' and keys' gradients are turned back."""
    rows, width, half = grad_TO.shape[0], grad_TO.shape[1] // heads, cos_TR.shape[1]
    spans = triton.cdiv(heads, _HEADS_EACH)
    parts = Parts.new(grad_TO, spans, thin_OR.shape[1])
    _turn_back[(triton.cdiv(rows, ROWS), spans)](
        grad_TO, cos_TR, sin_TR, thin_OR, *parts, rows, half, turned_heads, **_shape(heads, width, half, thin_OR)
    )
    return Measured(grad_TO, parts)


def _shape(heads: int, width: int, half: int, thin_OR: Tensor) -> dict[str, int]:
    rest = width - 2 * half
    return {
        "HEADS": heads,
        "H": width,
        "HALF": max(16, triton.next_power_of_2(half)),
        "REST": max(16, triton.next_power_of_2(rest)) if rest else 0,
        "R": thin_OR.shape[1],
        "ROWS": ROWS,
        "HEADS_EACH": _HEADS_EACH,
    }
