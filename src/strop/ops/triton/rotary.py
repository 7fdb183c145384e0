"""Prepare queries, keys and values for attention in place: add the low-rank term, rotate queries and keys."""

import triton
import triton.language as tl
from torch import Tensor

from strop.ops.triton.thin import ROWS, Blocks, LowRank, Measured, Parts, block_of, block_rows, registers, rows_of

_HEADS_EACH = 8
"""Heads per program."""

_REGISTERS = 168
"""Per thread, so that three programs share a multiprocessor, not two: 241 us instead of 288 (14,600 tokens, H200)."""


@triton.jit
def _angles(cos, sin, row, real, channel, half):
    """Cosines and sines of these rows' positions."""
    place, mask = row[:, None] * half + channel[None, :], real[:, None] & (channel < half)[None, :]
    return tl.load(cos + place, mask, 0.0).to(tl.float32), tl.load(sin + place, mask, 0.0).to(tl.float32)


@triton.jit
def _heads_of(
    q_start, k_start, v_start, num_heads, HEADS_EACH: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """This program's heads [first, last), all of queries, of keys or of values, and where their block starts."""
    kv_heads = (HEADS - num_heads) // 2
    q_spans, kv_spans = tl.cdiv(num_heads, HEADS_EACH), tl.cdiv(kv_heads, HEADS_EACH)
    span = tl.program_id(1)
    is_q, is_k = span < q_spans, span < q_spans + kv_spans
    begin = tl.where(is_q, 0, tl.where(is_k, num_heads, num_heads + kv_heads))
    end = tl.where(is_q, num_heads, tl.where(is_k, num_heads + kv_heads, HEADS))
    before = tl.where(is_q, 0, tl.where(is_k, q_spans, q_spans + kv_spans))
    first = begin + (span - before) * HEADS_EACH
    start = tl.where(is_q, q_start, tl.where(is_k, k_start, v_start))
    return first, tl.minimum(first + HEADS_EACH, end), start, is_k


@triton.jit
def _finish_qkv(
    qkv, h, thin, cos, sin, rows, half, num_heads, q_start, k_start, v_start,
    HEADS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HEADS_EACH: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    channel = tl.arange(0, HALF)
    first_head, last_head, start, turns = _heads_of(q_start, k_start, v_start, num_heads, HEADS_EACH, HEADS)
    h_tile = block_of(h, row, real, start, R, BLOCK)
    c, s = _angles(cos, sin, row, real, channel, half)
    x = qkv + row[:, None] * (HEADS * H) + channel[None, :]
    mask, near = real[:, None] & (channel < half)[None, :], channel < half
    for head in range(first_head, last_head):
        first_thin = rows_of(thin, head * H + channel, near, BLOCK)
        second_thin = rows_of(thin, head * H + half + channel, near, BLOCK)
        first = tl.load(x + head * H, mask, 0.0).to(tl.float32)
        second = tl.load(x + head * H + half, mask, 0.0).to(tl.float32)
        first = tl.dot(h_tile, tl.trans(first_thin), first, input_precision="ieee")
        second = tl.dot(h_tile, tl.trans(second_thin), second, input_precision="ieee")
        if turns:
            turned = first * c - second * s
            second = second * c + first * s
            first = turned
        tl.store(x + head * H, first, mask)
        tl.store(x + head * H + half, second, mask)
        if REST > 0:  # partial rotary: the last channels are not rotated
            rest_channel = 2 * half + tl.arange(0, REST)
            rest_mask = real[:, None] & (rest_channel < H)[None, :]
            place = qkv + row[:, None] * (HEADS * H) + head * H + rest_channel[None, :]
            rest_thin = rows_of(thin, head * H + rest_channel, rest_channel < H, BLOCK)
            rest = tl.load(place, rest_mask, 0.0).to(tl.float32)
            tl.store(place, tl.dot(h_tile, tl.trans(rest_thin), rest, input_precision="ieee"), rest_mask)


@triton.jit
def _turn_back(
    grad, cos, sin, thin, largest_parts, product_parts, rows, half, num_heads, q_start, k_start, v_start,
    HEADS: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, HEADS_EACH: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    channel = tl.arange(0, HALF)
    first_head, last_head, start, turns = _heads_of(q_start, k_start, v_start, num_heads, HEADS_EACH, HEADS)
    c, s = _angles(cos, sin, row, real, channel, half)
    largest, product = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    x = grad + row[:, None] * (HEADS * H) + channel[None, :]
    mask, near = real[:, None] & (channel < half)[None, :], channel < half
    for head in range(first_head, last_head):
        first, second = tl.load(x + head * H, mask, 0.0), tl.load(x + head * H + half, mask, 0.0)
        if turns:
            turned = first.to(tl.float32) * c + second.to(tl.float32) * s
            second = (second.to(tl.float32) * c - first.to(tl.float32) * s).to(first.dtype)
            first = turned.to(first.dtype)
            tl.store(x + head * H, first, mask)
            tl.store(x + head * H + half, second, mask)
        first_thin = rows_of(thin, head * H + channel, near, BLOCK)
        second_thin = rows_of(thin, head * H + half + channel, near, BLOCK)
        product = tl.dot(first, first_thin, product, input_precision="ieee")
        product = tl.dot(second, second_thin, product, input_precision="ieee")
        larger = tl.maximum(tl.abs(first.to(tl.float32)), tl.abs(second.to(tl.float32)))
        largest = tl.maximum(largest, tl.max(larger, 1))
        if REST > 0:
            rest_channel = 2 * half + tl.arange(0, REST)
            place = grad + row[:, None] * (HEADS * H) + head * H + rest_channel[None, :]
            rest = tl.load(place, real[:, None] & (rest_channel < H)[None, :], 0.0)
            rest_thin = rows_of(thin, head * H + rest_channel, rest_channel < H, BLOCK)
            product = tl.dot(rest, rest_thin, product, input_precision="ieee")
            largest = tl.maximum(largest, tl.max(tl.abs(rest.to(tl.float32)), 1))
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(largest_parts + place, largest, real)
    tl.store(product_parts + place[:, None] * R + start + tl.arange(0, BLOCK)[None, :], product, real[:, None])


def finish_qkv(
    qkv_TO: Tensor, pending: LowRank, blocks: Blocks, cos_TR: Tensor, sin_TR: Tensor, heads: tuple[int, int]
) -> None:
    """Add `pending` to a merged q, k, v product in place and rotate its queries and keys.

    Args:
        qkv_TO: (T, (N + 2 K) H).
        pending: Its low-rank term.
        blocks: The columns of that term's h which q, k and v use.
        cos_TR: (T, half) cosines; 2 half may be less than H, and the remaining channels are left as they are.
        sin_TR: Sines.
        heads: N, K.
    """
    rows, half = qkv_TO.shape[0], cos_TR.shape[1]
    programs, shape = _launch(qkv_TO, half, heads, blocks)
    _finish_qkv[programs](
        qkv_TO, *pending, cos_TR, sin_TR, rows, half, heads[0], *blocks.starts, **shape,
        maxnreg=registers(_REGISTERS, shape["R"]),
    )  # fmt: skip


def turn_back(
    grad_TO: Tensor, thin_OR: Tensor, blocks: Blocks, cos_TR: Tensor, sin_TR: Tensor, heads: tuple[int, int]
) -> Measured:
    """The rotation's backward, in place: rotate the gradients of queries and keys back, and measure the result."""
    rows, half = grad_TO.shape[0], cos_TR.shape[1]
    programs, shape = _launch(grad_TO, half, heads, blocks)
    parts = Parts.new(grad_TO, programs[1], blocks.rank)
    parts.product_STR.zero_()  # a program writes only its own block
    _turn_back[programs](grad_TO, cos_TR, sin_TR, thin_OR, *parts, rows, half, heads[0], *blocks.starts, **shape)
    return Measured(grad_TO, parts)


def _launch(
    qkv_TO: Tensor, half: int, heads: tuple[int, int], blocks: Blocks
) -> tuple[tuple[int, int], dict[str, int]]:
    """The programs, each for some heads of q, of k or of v, and the kernels' constants."""
    num_heads, kv_heads = heads
    all_heads = num_heads + 2 * kv_heads
    width = qkv_TO.shape[1] // all_heads
    rest = width - 2 * half
    spans = triton.cdiv(num_heads, _HEADS_EACH) + 2 * triton.cdiv(kv_heads, _HEADS_EACH)
    shape = {
        "HEADS": all_heads,
        "H": width,
        "HALF": max(16, triton.next_power_of_2(half)),
        "REST": max(16, triton.next_power_of_2(rest)) if rest else 0,
        "R": blocks.rank,
        "BLOCK": blocks.width,
        "ROWS": ROWS,
        "HEADS_EACH": _HEADS_EACH,
    }
    return (triton.cdiv(qkv_TO.shape[0], ROWS), spans), shape
