"""The residual stream: add a block's output and low-rank term to it, and normalise it into an operand.

For a row x of the stream and the gain g: r = 1 / sqrt(mean(x^2) + eps), n = g x r. The normalised row itself is never
stored: the product reads it quantised, and LoRA's gradient needs only x and r, since dA = n^T dh = g (x^T (r dh)).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.linear import Operand
from strop.ops.triton.thin import (
    ROWS,
    SPAN,
    LowRank,
    Measured,
    Parts,
    add_low_rank,
    add_thin_product,
    block_rows,
    grid,
    new_values,
    registers,
    rows_of,
    store_parts,
    sum_up,
)

CHUNK = 64
"""Columns at a time: the backward takes 119 us with 64 and 142 us with 128 (14,600 rows of 3,072 on an H200)."""


class Stream(NamedTuple):
    """The residual stream x + block + pending; the last two terms, if any, are still to be added."""

    x_TD: Tensor
    block_TD: Tensor | None
    pending: LowRank | None


class MeasuredStream(NamedTuple):
    """The stream, each span's sum of squares, and the parts of g x."""

    x_TD: Tensor
    squares_ST: Tensor
    parts: Parts


@triton.jit
def _advance(
    x, block, h, block_thin, out, gain, thin, squares_parts, largest_parts, product_parts, rows, width,
    HAS_BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    squares, largest = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS, R], tl.float32)
    if HAS_BLOCK:
        h_tile = rows_of(h, row, real, BLOCK_R)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
        x_tile = tl.load(x + place, mask, 0.0)
        if HAS_BLOCK:
            total = x_tile.to(tl.float32) + tl.load(block + place, mask, 0.0).to(tl.float32)
            x_tile = add_low_rank(total, h_tile, block_thin, column, width, BLOCK_R).to(x_tile.dtype)
            tl.store(out + place, x_tile, mask)
        wide = x_tile.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
        wide *= tl.load(gain + column, column < width, 0.0).to(tl.float32)[None, :]
        largest = tl.maximum(largest, tl.max(tl.abs(wide), 1))
        product = add_thin_product(product, wide.to(x_tile.dtype), thin, column, width, R)
    tl.store(squares_parts + tl.program_id(1).to(tl.int64) * rows + row, squares, real)
    store_parts(largest_parts, product_parts, row, real, rows, largest, product, R)


@triton.jit
def _norm(
    x, gain, values, scale, factor, rows, width, QUANTISE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
    r = tl.load(factor + row, real, 0.0)
    if QUANTISE:
        r = r / tl.load(scale + row, real, 1.0)
    wide = tl.load(x + place, mask, 0.0).to(tl.float32)
    wide *= tl.load(gain + column, column < width, 0.0).to(tl.float32)[None, :]
    tl.store(values + place, (wide * r[:, None]).to(values.dtype.element_ty), mask)


@triton.jit
def _weighted(grad, dh, thin, gain, place, mask, column, width, R: tl.constexpr):
    """U = gain * (grad + dh W^T), the gradient of x r, for a tile."""
    u = add_low_rank(tl.load(grad + place, mask, 0.0).to(tl.float32), dh, thin, column, width, R)
    return u * tl.load(gain + column, column < width, 0.0).to(tl.float32)[None, :]


@triton.jit
def _norm_backward_along(
    grad, dh, thin, x, gain, along_parts, rows, width,
    R: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Each span's part of sum(u x)."""
    row = block_rows(ROWS)
    real = row < rows
    dh_tile = rows_of(dh, row, real, R)
    along = tl.zeros([ROWS], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
        u = _weighted(grad, dh_tile, thin, gain, place, mask, column, width, R)
        along += tl.sum(u * tl.load(x + place, mask, 0.0).to(tl.float32), 1)
    tl.store(along_parts + tl.program_id(1).to(tl.int64) * rows + row, along, real)


@triton.jit
def _norm_backward(
    grad, dh, thin, x, factor, gain, residual, along_parts, dx, next_thin, largest_parts, product_parts,
    rows, width, spans,
    R: tl.constexpr, NEXT_R: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    r = tl.load(factor + row, real, 0.0)
    along = tl.zeros([ROWS], tl.float32)
    for span in range(spans):
        along += tl.load(along_parts + span * rows + row, real, 0.0)
    along *= r * r / width
    dh_tile = rows_of(dh, row, real, R)
    largest, product = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, NEXT_R], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
        u = _weighted(grad, dh_tile, thin, gain, place, mask, column, width, R)
        x_tile = tl.load(x + place, mask, 0.0).to(tl.float32)
        back = tl.load(residual + place, mask, 0.0)
        value = (back.to(tl.float32) + r[:, None] * (u - x_tile * along[:, None])).to(back.dtype)
        tl.store(dx + place, value, mask)
        largest = tl.maximum(largest, tl.max(tl.abs(value.to(tl.float32)), 1))
        product = add_thin_product(product, value, next_thin, column, width, NEXT_R)
    store_parts(largest_parts, product_parts, row, real, rows, largest, product, NEXT_R)


def advance(stream: Stream, gain_D: Tensor, thin_DR: Tensor) -> MeasuredStream:
    """The stream with its pending terms added, written over the block, and measured for its next norm."""
    x_TD, block_TD, pending = stream
    (rows, width), rank = x_TD.shape, thin_DR.shape[1]
    parts = Parts.new(x_TD, triton.cdiv(width, SPAN), rank)
    squares_ST = torch.empty_like(parts.largest_ST)
    h_TR, block_thin = pending or (None, None)
    _advance[grid(rows, width)](
        x_TD, block_TD, h_TR, block_thin, block_TD, gain_D, thin_DR, squares_ST, *parts, rows, width,
        HAS_BLOCK=block_TD is not None, BLOCK_R=0 if h_TR is None else h_TR.shape[1],
        R=rank, ROWS=ROWS, CHUNK=CHUNK, SPAN=SPAN, maxnreg=registers(128, rank),
    )  # fmt: skip
    return MeasuredStream(x_TD if block_TD is None else block_TD, squares_ST, parts)


def norm_operand(
    stream: MeasuredStream, gain_D: Tensor, eps: float, scaling: float, float8: bool
) -> tuple[Operand, Tensor, Tensor]:
    """The operand of a product that reads the normed rows n, h = scaling * n W, and each row's factor r."""
    x_TD, squares_ST, parts = stream
    rows, width = x_TD.shape
    h_TR, scale_T, factor_T = sum_up(parts, scaling, float8, x_TD.dtype, squares_ST, width, eps)
    assert factor_T is not None
    values = new_values(x_TD, width, float8)
    programs = (triton.cdiv(rows, ROWS), triton.cdiv(width, CHUNK))
    _norm[programs](x_TD, gain_D, values, scale_T, factor_T, rows, width, QUANTISE=float8, ROWS=ROWS, CHUNK=CHUNK)
    return Operand(values, scale_T), h_TR, factor_T


def norm_backward(
    grad_TD: Tensor, pending: LowRank, x_TD: Tensor, factor_T: Tensor, gain_D: Tensor, residual_TD: Tensor,
    next_thin_DR: Tensor,
) -> Measured:  # fmt: skip
    """The gradient of x, measured: residual + r (u - x r^2 mean(u x)), where u = gain (grad + pending).

    Args:
        grad_TD: The gradient of the normed rows without `pending`, its low-rank term.
        pending: That term.
        x_TD: The stream before the norm.
        factor_T: Each row's r.
        gain_D: The norm's gain.
        residual_TD: The gradient that reaches x around the norm.
        next_thin_DR: The thin matrix that multiplies the result for the product that reads it.
    """
    (rows, width), rank, next_rank = x_TD.shape, pending.thin_OR.shape[1], next_thin_DR.shape[1]
    dx_TD, parts = torch.empty_like(x_TD), Parts.new(x_TD, triton.cdiv(width, SPAN), next_rank)
    along_ST = torch.empty_like(parts.largest_ST)
    tiles = {"ROWS": ROWS, "CHUNK": CHUNK, "SPAN": SPAN}
    programs = grid(rows, width)
    _norm_backward_along[programs](grad_TD, *pending, x_TD, gain_D, along_ST, rows, width, R=rank, **tiles)
    _norm_backward[programs](
        grad_TD, *pending, x_TD, factor_T, gain_D, residual_TD, along_ST, dx_TD, next_thin_DR, *parts,
        rows, width, programs[1], R=rank, NEXT_R=next_rank, **tiles, maxnreg=registers(168, rank),
    )  # fmt: skip
    return Measured(dx_TD, parts)
