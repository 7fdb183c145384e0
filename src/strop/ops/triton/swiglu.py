"""SwiGLU between its two products: low-rank terms, the activation and LoRA's thin products, in one pass each way.

With a = silu(gate) up and s = sigmoid(gate):  dgate = da up s (1 + gate (1 - s)),  dup = da gate s.

A is not kept: the backward reads gate and up and adds their low-rank term again. It walks down columns, computes
LoRA's gradients on the way, and writes dgate and dup over gate and up. Quantising a result for a float8 product reads
it again (`operand_of`); computing it twice instead, so that it is never written in bfloat16, moves an eighth fewer
bytes but takes 8% longer, because these kernels are bound by instructions.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.triton.thin import (
    ROWS,
    SPAN,
    Blocks,
    LowRank,
    Measured,
    Parts,
    add_thin_product,
    block_of,
    block_rows,
    grid,
    registers,
    rows_of,
    store_parts,
    thin_tile,
)

_CHUNK = 64
"""Columns at a time of the forward's programs, which own rows."""

_REGISTERS = 128
"""Per thread in the forward, so that four programs share a multiprocessor: 179 us instead of 213."""

_SLAB = 64
"""Columns per program in the backward."""

_SLAB_PROGRAMS = 512
"""The least number of them, rows permitting: about four for each of a large GPU's multiprocessors."""


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) as a squared reciprocal square root: the kernels need a quarter fewer instructions."""
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
def _swiglu(
    gate_up, h, thin, up_start, out_thin, out, largest_parts, product_parts, rows, width,
    R: tl.constexpr, BLOCK: tl.constexpr, OUT_R: tl.constexpr,
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
        place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
        tl.store(out + place, a, mask)
    store_parts(largest_parts, product_parts, row, real, rows, largest, product, OUT_R)


@triton.jit
def _swiglu_backward(
    gate_up, h, thin, up_start, grad, dh, out_thin, largest_parts, product_parts, d_thin, d_out_thin,
    rows, width, rows_each,
    SPLIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, OUT_R: tl.constexpr,
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
        gate, up = _gate_up(gate_up, row, real, gate_h, up_h, gate_thin, up_thin, column, width)
        place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
        da = tl.load(grad + place, mask, 0.0).to(tl.float32)
        da = tl.dot(dh_tile, tl.trans(out_tile), da, input_precision="ieee")
        s = sigmoid(gate)
        silu = gate * s
        a, dgate, dup = silu * up, da * up * (s + silu * (1 - s)), da * silu
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
        place = row[:, None] * 2 * width + column[None, :]
        tl.store(gate_up + place, dgate, mask)
        tl.store(gate_up + place + width, dup, mask)
    inside = (column < width)[:, None]
    place = d_thin + part * 2 * width * BLOCK + column[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(place, d_gate, inside)
    tl.store(place + width * BLOCK, d_up, inside)
    place = d_out_thin + part * width * OUT_R + column[:, None] * OUT_R + tl.arange(0, OUT_R)[None, :]
    tl.store(place, d_out, inside)


class SwigluGradients(NamedTuple):
    """What the backward of SwiGLU returns.

    Attributes:
        measured: (dgate, dup), in the memory of gate and up, measured with W.
        thin_2FB: Gradient of W in float32.
        out_thin_FR: Gradient of the thin matrix that multiplies a, likewise.
    """

    measured: Measured
    thin_2FB: Tensor
    out_thin_FR: Tensor


def swiglu(gate_up_T2F: Tensor, pending: LowRank, blocks: Blocks, thin_FR: Tensor) -> Measured:
    """A = silu(gate) up, measured.

    Args:
        gate_up_T2F: Gate and up, side by side, without `pending`, which is added here.
        pending: Their low-rank term.
        blocks: The columns of that term's h which gate and up use.
        thin_FR: The thin matrix that multiplies a for the product that reads it.
    """
    rows, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out = gate_up_T2F.new_empty((rows, width))
    parts = Parts.new(out, triton.cdiv(width, SPAN), thin_FR.shape[1])
    _swiglu[grid(rows, width)](
        gate_up_T2F, *pending, blocks.starts[1], thin_FR, out, *parts, rows, width,
        R=blocks.rank, BLOCK=blocks.width, OUT_R=thin_FR.shape[1], ROWS=ROWS, CHUNK=_CHUNK, SPAN=SPAN,
        maxnreg=registers(_REGISTERS, blocks.rank),
    )  # fmt: skip
    return Measured(out, parts)


def swiglu_backward(
    grad_TF: Tensor, grad_pending: LowRank, gate_up_T2F: Tensor, pending: LowRank, blocks: Blocks
) -> SwigluGradients:
    """From the gradient of a to those of gate and up, and of the thin matrices on both sides.

    Args:
        grad_TF: The gradient of a, without `grad_pending`, which is added here.
        grad_pending: Its low-rank term; a^T h of its h is the gradient of its thin matrix.
        gate_up_T2F: Gate and up, side by side, without `pending`, which is added here. Overwritten.
        pending: Their low-rank term h W^T; (dgate, dup)^T h is the gradient of W.
        blocks: The columns of `pending`'s h which gate and up use.
    """
    (rows, width), rank, out_rank = grad_TF.shape, blocks.rank, grad_pending.thin_OR.shape[1]
    slabs = triton.cdiv(width, _SLAB)
    shares = max(1, min(triton.cdiv(_SLAB_PROGRAMS, slabs), triton.cdiv(rows, ROWS)))
    rows_each = triton.cdiv(triton.cdiv(rows, shares), ROWS) * ROWS
    new = partial(grad_TF.new_empty, dtype=torch.float32)
    d_thin, d_out_thin = new((shares, 2 * width, blocks.width)), new((shares, width, out_rank))
    parts = Parts.new(grad_TF, slabs, rank)
    _swiglu_backward[(slabs, shares)](
        gate_up_T2F, *pending, blocks.starts[1], grad_TF, *grad_pending, *parts, d_thin, d_out_thin,
        rows, width, rows_each,
        SPLIT=blocks.starts[1] > 0, R=rank, BLOCK=blocks.width, OUT_R=out_rank, ROWS=ROWS, SLAB=_SLAB,
    )  # fmt: skip
    return SwigluGradients(Measured(gate_up_T2F, parts), d_thin.sum(0), d_out_thin.sum(0))
