"""SwiGLU between its two products: low-rank terms, the activation, quantisation and LoRA's thin products.

With a = silu(gate) up and s = sigmoid(gate):  dgate = da up s (1 + gate (1 - s)),  dup = da gate s.

Nothing of the size of a is kept or even written, but for the operands: every kernel reads gate and up and adds their
low-rank term again. A float8 operand takes two passes, because its scale needs whole rows. The backward's first pass
goes down columns and makes LoRA's gradients on the way. To write a, dgate and dup in bfloat16 and read them back would
move more.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.frozen_linear import Operand
from strop.ops.fused.operand import new_values
from strop.ops.fused.thin import (
    ROWS,
    SPAN,
    Blocks,
    LowRank,
    Parts,
    add_thin_product,
    block_of,
    block_rows,
    grid,
    registers,
    rows_of,
    store_parts,
    sum_up,
    thin_tile,
)

_CHUNK = 64
"""Columns at a time of the kernels that own rows."""

_REGISTERS = 128
"""Of a thread of the first pass, so that four programs share a multiprocessor: 179 us instead of 213."""

_SLAB = 64
"""Columns of a program that makes LoRA's gradients."""

_SLAB_PROGRAMS = 512
"""How many of them there are at least, rows permitting: about four for each of a large GPU's multiprocessors."""


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), its division by the reciprocal square root: a quarter of the kernels' instructions less."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def _thin_tiles(thin, column, width, BLOCK: tl.constexpr):
    """The rows of W for these columns of gate and of up."""
    return rows_of(thin, column, column < width, BLOCK), rows_of(thin, width + column, column < width, BLOCK)


@triton.jit
def _gate_up(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, column, width):
    """Gate and up of these rows and columns in float32, with their low-rank terms."""
    place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
    gate = tl.load(gate_up + place, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + place + width, mask, 0.0).to(tl.float32)
    gate = tl.dot(gate_h, tl.trans(gate_thin), gate, input_precision="ieee")
    return gate, tl.dot(up_h, tl.trans(up_thin), up, input_precision="ieee")


@triton.jit
def _gradients(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, grad, dh, out_thin, column, width):
    """A, dgate and dup of these rows and columns."""
    gate, up = _gate_up(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, column, width)
    place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
    da = tl.load(grad + place, mask, 0.0).to(tl.float32)
    da = tl.dot(dh, tl.trans(out_thin), da, input_precision="ieee")
    s = sigmoid(gate)
    silu = gate * s
    return silu * up, da * up * (s + silu * (1 - s)), da * silu


@triton.jit
def _swiglu_measure(
    gate_up, h, thin, up_start, out_thin, values, largest_parts, product_parts, rows, width,
    QUANTISE: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    gate_h, up_h = block_of(h, row, real, 0, R, BLOCK), block_of(h, row, real, up_start, R, BLOCK)
    largest, product = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, OUT_R], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        gate_thin, up_thin = _thin_tiles(thin, column, width, BLOCK)
        gate, up = _gate_up(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, column, width)
        a = gate * sigmoid(gate) * up
        largest = tl.maximum(largest, tl.max(tl.abs(a), 1))
        product = add_thin_product(product, a, out_thin, column, width, OUT_R)
        if not QUANTISE:
            place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, a, mask)
    store_parts(largest_parts, product_parts, row, real, rows, largest, product, OUT_R)


@triton.jit
def _swiglu_quantise(
    gate_up, h, thin, up_start, values, scale, rows, width,
    R: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    gate_thin, up_thin = _thin_tiles(thin, column, width, BLOCK)
    gate_h, up_h = block_of(h, row, real, 0, R, BLOCK), block_of(h, row, real, up_start, R, BLOCK)
    gate, up = _gate_up(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, column, width)
    step = tl.load(scale + row, real, 1.0)
    a = gate * sigmoid(gate) * (up * (1.0 / step)[:, None])
    place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
    tl.store(values + place, a.to(values.dtype.element_ty), mask)


@triton.jit
def _backward_measure(
    gate_up, h, thin, up_start, grad, dh, out_thin, values, largest_parts, product_parts, d_thin, d_out_thin,
    rows, width, rows_each,
    QUANTISE: tl.constexpr, SPLIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * SLAB + tl.arange(0, SLAB)
    part = tl.program_id(1).to(tl.int64)
    gate_thin, up_thin = _thin_tiles(thin, column, width, BLOCK)
    out_tile = thin_tile(out_thin, column, width, OUT_R)
    d_gate, d_up = tl.zeros([SLAB, BLOCK], tl.float32), tl.zeros([SLAB, BLOCK], tl.float32)
    d_out = tl.zeros([SLAB, OUT_R], tl.float32)
    last = tl.minimum(rows, (part + 1) * rows_each)
    for start in range(part * rows_each, last, ROWS):
        row = start + tl.arange(0, ROWS)
        real = row < last
        gate_h, up_h = block_of(h, row, real, 0, R, BLOCK), block_of(h, row, real, up_start, R, BLOCK)
        dh_tile = rows_of(dh, row, real, OUT_R)
        a, dgate, dup = _gradients(
            gate_up, row, real, gate_h, up_h, gate_thin, up_thin, grad, dh_tile, out_tile, column, width
        )
        most = tl.max(tl.maximum(tl.abs(dgate), tl.abs(dup)), 1)
        dgate, dup = dgate.to(gate_h.dtype), dup.to(gate_h.dtype)
        place = tl.program_id(0).to(tl.int64) * rows + row
        tl.store(largest_parts + place, most, real)
        product = tl.dot(dgate, gate_thin, input_precision="ieee")
        place = place[:, None] * R + tl.arange(0, BLOCK)[None, :]
        if SPLIT:
            up_product = tl.dot(dup, up_thin, input_precision="ieee")
            tl.store(product_parts + up_start + place, up_product, real[:, None])
        else:
            product = tl.dot(dup, up_thin, product, input_precision="ieee")
        tl.store(product_parts + place, product, real[:, None])
        d_gate = tl.dot(tl.trans(dgate), gate_h, d_gate, input_precision="ieee")
        d_up = tl.dot(tl.trans(dup), up_h, d_up, input_precision="ieee")
        d_out = tl.dot(tl.trans(a.to(dh_tile.dtype)), dh_tile, d_out, input_precision="ieee")
        if not QUANTISE:
            place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, dgate, mask)
            tl.store(values + place + width, dup, mask)
    inside = (column < width)[:, None]
    place = d_thin + part * 2 * width * BLOCK + column[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(place, d_gate, inside)
    tl.store(place + width * BLOCK, d_up, inside)
    place = d_out_thin + part * width * OUT_R + column[:, None] * OUT_R + tl.arange(0, OUT_R)[None, :]
    tl.store(place, d_out, inside)


@triton.jit
def _backward_quantise(
    gate_up, h, thin, up_start, grad, dh, out_thin, values, scale, rows, width,
    R: tl.constexpr, BLOCK: tl.constexpr, OUT_R: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    gate_thin, up_thin = _thin_tiles(thin, column, width, BLOCK)
    out_tile = thin_tile(out_thin, column, width, OUT_R)
    gate_h, up_h = block_of(h, row, real, 0, R, BLOCK), block_of(h, row, real, up_start, R, BLOCK)
    dh_tile = rows_of(dh, row, real, OUT_R)
    _, dgate, dup = _gradients(
        gate_up, row, real, gate_h, up_h, gate_thin, up_thin, grad, dh_tile, out_tile, column, width
    )
    inverse = 1.0 / tl.load(scale + row, real, 1.0)[:, None]
    place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
    tl.store(values + place, (dgate * inverse).to(values.dtype.element_ty), mask)
    tl.store(values + place + width, (dup * inverse).to(values.dtype.element_ty), mask)


class SwigluGradients(NamedTuple):
    """What the backward of SwiGLU makes.

    Attributes:
        operand: Of the product that reads (dgate, dup).
        dh_TR: scaling * (dgate, dup) W.
        thin_2FB: Gradient of W in float32.
        out_thin_FR: Gradient of the thin matrix behind a, likewise.
    """

    operand: Operand
    dh_TR: Tensor
    thin_2FB: Tensor
    out_thin_FR: Tensor


def swiglu_operand(
    gate_up_T2F: Tensor, pending: LowRank, blocks: Blocks, thin_FR: Tensor, scaling: float, float8: bool
) -> tuple[Operand, Tensor]:
    """The operand of a product that reads a = silu(gate) up, and h = scaling * a W.

    Args:
        gate_up_T2F: Gate and up, side by side, without `pending`, which is added here.
        pending: Their low-rank term.
        blocks: The columns of that term's h which gate and up use.
        thin_FR: W.
        scaling: LoRA's.
        float8: Quantise the operand.
    """
    rows, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    rank, out_rank = blocks.rank, thin_FR.shape[1]
    values, parts = new_values(gate_up_T2F, width, float8), Parts.new(gate_up_T2F, triton.cdiv(width, SPAN), out_rank)
    _swiglu_measure[grid(rows, width)](
        gate_up_T2F, *pending, blocks.starts[1], thin_FR, values, *parts, rows, width,
        QUANTISE=float8, R=rank, BLOCK=blocks.width, OUT_R=out_rank, ROWS=ROWS, CHUNK=_CHUNK, SPAN=SPAN,
        maxnreg=registers(_REGISTERS, rank),
    )  # fmt: skip
    sums = sum_up(parts, scaling, float8, gate_up_T2F.dtype)
    if float8:
        programs = (triton.cdiv(rows, ROWS), triton.cdiv(width, _CHUNK))
        _swiglu_quantise[programs](
            gate_up_T2F, *pending, blocks.starts[1], values, sums.scale_T, rows, width,
            R=rank, BLOCK=blocks.width, ROWS=ROWS, CHUNK=_CHUNK,
        )  # fmt: skip
    return Operand(values, sums.scale_T), sums.h_TR


def swiglu_backward(
    grad_TF: Tensor, grad_pending: LowRank, gate_up_T2F: Tensor, pending: LowRank, blocks: Blocks,
    scaling: float, float8: bool,
) -> SwigluGradients:  # fmt: skip
    """From the gradient of a to those of gate and up, and of the thin matrices on both sides.

    Args:
        grad_TF: The gradient of a, without `grad_pending`, which is added here.
        grad_pending: Its low-rank term; a^T h of its h is the gradient of its thin matrix.
        gate_up_T2F: Gate and up, side by side, without `pending`, which is added here.
        pending: Their low-rank term; (dgate, dup)^T h of its h is the gradient of its thin matrix.
        blocks: The columns of `pending`'s h which gate and up use.
        scaling: dh = scaling * (dgate, dup) W, with `pending`'s W.
        float8: Quantise the operand.
    """
    (rows, width), rank, out_rank = grad_TF.shape, blocks.rank, grad_pending.thin_OR.shape[1]
    slabs = triton.cdiv(width, _SLAB)
    shares = max(1, min(triton.cdiv(_SLAB_PROGRAMS, slabs), triton.cdiv(rows, ROWS)))
    rows_each = triton.cdiv(triton.cdiv(rows, shares), ROWS) * ROWS
    new = partial(grad_TF.new_empty, dtype=torch.float32)
    d_thin, d_out_thin = new((shares, 2 * width, blocks.width)), new((shares, width, out_rank))
    values, parts = new_values(grad_TF, 2 * width, float8), Parts.new(grad_TF, slabs, rank)
    terms = (gate_up_T2F, *pending, blocks.starts[1], grad_TF, *grad_pending)
    ranks = {"R": rank, "BLOCK": blocks.width, "OUT_R": out_rank, "ROWS": ROWS}
    _backward_measure[(slabs, shares)](
        *terms, values, *parts, d_thin, d_out_thin, rows, width, rows_each,
        QUANTISE=float8, SPLIT=blocks.starts[1] > 0, **ranks, SLAB=_SLAB,
    )  # fmt: skip
    sums = sum_up(parts, scaling, float8, grad_TF.dtype)
    if float8:
        programs = (triton.cdiv(rows, ROWS), triton.cdiv(width, _CHUNK))
        _backward_quantise[programs](*terms, values, sums.scale_T, rows, width, **ranks, CHUNK=_CHUNK)
    return SwigluGradients(Operand(values, sums.scale_T), sums.h_TR, d_thin.sum(0), d_out_thin.sum(0))
