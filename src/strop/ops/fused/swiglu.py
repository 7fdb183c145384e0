"""SwiGLU between its two products: low-rank terms, the activation, quantisation and LoRA's thin products.

With a = silu(gate) up and s = sigmoid(gate):  dgate = da up s (1 + gate (1 - s)),  dup = da gate s.

Nothing of the size of a is kept or even written, but for the operands: every kernel reads gate and up and adds their
low-rank term again. A float8 operand takes two passes, because its scale needs whole rows; LoRA's gradients take one
more, by columns. Writing a, dgate and dup in bfloat16 and reading them back would move more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.frozen_linear import Operand
from strop.ops.fused.operand import new_operand
from strop.ops.fused.thin import (
    CHUNK,
    ROWS,
    SPAN,
    LowRank,
    Parts,
    add_thin_product,
    block_rows,
    float8_step,
    grid,
    max_of_parts,
    rows_of,
    store_parts,
    store_product,
    thin_tile,
)

_SLAB = 64
"""Columns, and rows at a time, of a program that makes LoRA's gradients."""

_SLAB_PROGRAMS = 512
"""How many of them there are at least, rows permitting: about four for each of a large GPU's multiprocessors."""


@triton.jit
def _gate_up(gate_up, row, real, h, gate_thin, up_thin, column, width):
    """Gate and up of these rows and columns in float32, with their low-rank term."""
    place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
    gate = tl.load(gate_up + place, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + place + width, mask, 0.0).to(tl.float32)
    gate = tl.dot(h, tl.trans(gate_thin), gate, input_precision="ieee")
    return gate, tl.dot(h, tl.trans(up_thin), up, input_precision="ieee")


@triton.jit
def _gradients(gate_up, row, real, h, gate_thin, up_thin, grad, dh, out_thin, column, width):
    """A, dgate and dup of these rows and columns."""
    gate, up = _gate_up(gate_up, row, real, h, gate_thin, up_thin, column, width)
    place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
    da = tl.load(grad + place, mask, 0.0).to(tl.float32)
    da = tl.dot(dh, tl.trans(out_thin), da, input_precision="ieee")
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    return silu * up, da * up * (sigmoid + silu * (1 - sigmoid)), da * silu


@triton.jit
def _swiglu_measure(
    gate_up, h, thin, out_thin, values, largest_parts, product_parts, rows, width,
    QUANTISE: tl.constexpr, R: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    h_tile = rows_of(h, row, real, R)
    largest, product = tl.zeros([ROWS, CHUNK], tl.float32), tl.zeros([ROWS, OUT_R], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        gate_thin, up_thin = thin_tile(thin, column, width, R), thin_tile(thin + width * R, column, width, R)
        gate, up = _gate_up(gate_up, row, real, h_tile, gate_thin, up_thin, column, width)
        a = gate * tl.sigmoid(gate) * up
        largest = tl.maximum(largest, tl.abs(a))
        product = add_thin_product(product, a, out_thin, column, width, OUT_R)
        if not QUANTISE:
            place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, a, mask)
    store_parts(largest_parts, product_parts, row, real, rows, tl.max(largest, 1), product, OUT_R)


@triton.jit
def _swiglu_finish(
    gate_up, h, thin, values, scale, out_h, largest_parts, product_parts, scaling, rows, width, spans,
    QUANTISE: tl.constexpr, R: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    store_product(out_h, product_parts, row, real, rows, spans, scaling, OUT_R, ROWS)
    if QUANTISE:
        step = float8_step(max_of_parts(largest_parts, row, real, rows, spans, ROWS))
        tl.store(scale + row, step, real & (tl.program_id(1) == 0))
        h_tile = rows_of(h, row, real, R)
        for start in range(0, SPAN, CHUNK):
            column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
            gate_thin, up_thin = thin_tile(thin, column, width, R), thin_tile(thin + width * R, column, width, R)
            gate, up = _gate_up(gate_up, row, real, h_tile, gate_thin, up_thin, column, width)
            a = gate * tl.sigmoid(gate) * up / step[:, None]
            place, mask = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, a.to(values.dtype.element_ty), mask)


@triton.jit
def _backward_measure(
    gate_up, h, thin, grad, dh, out_thin, values, largest_parts, product_parts, rows, width,
    QUANTISE: tl.constexpr, R: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    h_tile, dh_tile = rows_of(h, row, real, R), rows_of(dh, row, real, OUT_R)
    largest, product = tl.zeros([ROWS, CHUNK], tl.float32), tl.zeros([ROWS, R], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        gate_thin, up_thin = thin_tile(thin, column, width, R), thin_tile(thin + width * R, column, width, R)
        out_tile = thin_tile(out_thin, column, width, OUT_R)
        _, dgate, dup = _gradients(
            gate_up, row, real, h_tile, gate_thin, up_thin, grad, dh_tile, out_tile, column, width
        )
        largest = tl.maximum(largest, tl.maximum(tl.abs(dgate), tl.abs(dup)))
        product = tl.dot(dgate.to(gate_thin.dtype), gate_thin, product, input_precision="ieee")
        product = tl.dot(dup.to(up_thin.dtype), up_thin, product, input_precision="ieee")
        if not QUANTISE:
            place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, dgate, mask)
            tl.store(values + place + width, dup, mask)
    store_parts(largest_parts, product_parts, row, real, rows, tl.max(largest, 1), product, R)


@triton.jit
def _backward_finish(
    gate_up, h, thin, grad, dh, out_thin, values, scale, in_dh, largest_parts, product_parts,
    scaling, rows, width, spans,
    QUANTISE: tl.constexpr, R: tl.constexpr, OUT_R: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    store_product(in_dh, product_parts, row, real, rows, spans, scaling, R, ROWS)
    if QUANTISE:
        step = float8_step(max_of_parts(largest_parts, row, real, rows, spans, ROWS))
        tl.store(scale + row, step, real & (tl.program_id(1) == 0))
        h_tile, dh_tile = rows_of(h, row, real, R), rows_of(dh, row, real, OUT_R)
        for start in range(0, SPAN, CHUNK):
            column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
            gate_thin, up_thin = thin_tile(thin, column, width, R), thin_tile(thin + width * R, column, width, R)
            out_tile = thin_tile(out_thin, column, width, OUT_R)
            _, dgate, dup = _gradients(
                gate_up, row, real, h_tile, gate_thin, up_thin, grad, dh_tile, out_tile, column, width
            )
            place, mask = row[:, None] * 2 * width + column[None, :], real[:, None] & (column < width)[None, :]
            tl.store(values + place, (dgate / step[:, None]).to(values.dtype.element_ty), mask)
            tl.store(values + place + width, (dup / step[:, None]).to(values.dtype.element_ty), mask)


@triton.jit
def _backward_columns(
    gate_up, h, thin, grad, dh, out_thin, d_thin, d_out_thin, rows, width, rows_each,
    R: tl.constexpr, OUT_R: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * SLAB + tl.arange(0, SLAB)
    part = tl.program_id(1).to(tl.int64)
    d_gate, d_up = tl.zeros([SLAB, R], tl.float32), tl.zeros([SLAB, R], tl.float32)
    d_out = tl.zeros([SLAB, OUT_R], tl.float32)
    gate_thin, up_thin = thin_tile(thin, column, width, R), thin_tile(thin + width * R, column, width, R)
    out_tile = thin_tile(out_thin, column, width, OUT_R)
    last = tl.minimum(rows, (part + 1) * rows_each)
    for start in range(part * rows_each, last, SLAB):
        row = start + tl.arange(0, SLAB)
        real = row < last
        h_tile, dh_tile = rows_of(h, row, real, R), rows_of(dh, row, real, OUT_R)
        a, dgate, dup = _gradients(
            gate_up, row, real, h_tile, gate_thin, up_thin, grad, dh_tile, out_tile, column, width
        )
        d_gate = tl.dot(tl.trans(dgate.to(h_tile.dtype)), h_tile, d_gate, input_precision="ieee")
        d_up = tl.dot(tl.trans(dup.to(h_tile.dtype)), h_tile, d_up, input_precision="ieee")
        d_out = tl.dot(tl.trans(a.to(dh_tile.dtype)), dh_tile, d_out, input_precision="ieee")
    inside = (column < width)[:, None]
    place = d_thin + part * 2 * width * R + column[:, None] * R + tl.arange(0, R)[None, :]
    tl.store(place, d_gate, inside)
    tl.store(place + width * R, d_up, inside)
    place = d_out_thin + part * width * OUT_R + column[:, None] * OUT_R + tl.arange(0, OUT_R)[None, :]
    tl.store(place, d_out, inside)


def swiglu_operand(
    gate_up_T2F: Tensor, pending: LowRank, thin_FR: Tensor, scaling: float, float8: bool
) -> tuple[Operand, Tensor]:
    """The operand of a product that reads a = silu(gate) up, and h = scaling * a W."""
    rows, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    rank, out_rank = pending.thin_OR.shape[1], thin_FR.shape[1]
    operand, parts = new_operand(gate_up_T2F, width, float8), Parts.new(gate_up_T2F, triton.cdiv(width, SPAN), out_rank)
    h_TR = gate_up_T2F.new_empty((rows, out_rank))
    programs, shape = grid(rows, width), _shape(float8, rank, out_rank)
    _swiglu_measure[programs](gate_up_T2F, *pending, thin_FR, operand.values, *parts, rows, width, **shape)
    _swiglu_finish[programs if float8 else (programs[0], 1)](
        gate_up_T2F, *pending, *operand, h_TR, *parts, scaling, rows, width, programs[1], **shape
    )
    return operand, h_TR


def swiglu_backward_operand(
    grad_TF: Tensor, grad_pending: LowRank, gate_up_T2F: Tensor, pending: LowRank, scaling: float, float8: bool
) -> tuple[Operand, Tensor]:
    """The operand of the product that reads (dgate, dup), and dh = scaling * (dgate, dup) W with `pending`'s W.

    Args:
        grad_TF: The gradient of a, without `grad_pending`, which is added here.
        grad_pending: Its low-rank term.
        gate_up_T2F: Gate and up, side by side, without `pending`, which is added here.
        pending: Their low-rank term.
        scaling: LoRA's.
        float8: Quantise the operand.
    """
    (rows, width), rank, out_rank = grad_TF.shape, pending.thin_OR.shape[1], grad_pending.thin_OR.shape[1]
    operand, parts = new_operand(grad_TF, 2 * width, float8), Parts.new(grad_TF, triton.cdiv(width, SPAN), rank)
    dh_TR = grad_TF.new_empty((rows, rank))
    programs, shape = grid(rows, width), _shape(float8, rank, out_rank)
    terms = (gate_up_T2F, *pending, grad_TF, *grad_pending)
    _backward_measure[programs](*terms, operand.values, *parts, rows, width, **shape)
    _backward_finish[programs if float8 else (programs[0], 1)](
        *terms, *operand, dh_TR, *parts, scaling, rows, width, programs[1], **shape
    )
    return operand, dh_TR


def swiglu_thin_gradients(
    grad_TF: Tensor, grad_pending: LowRank, gate_up_T2F: Tensor, pending: LowRank
) -> tuple[Tensor, Tensor]:
    """Gradients of the thin matrices before and after: (dgate, dup)^T h, (2F, R), and a^T dh, (F, R), in float32."""
    (rows, width), rank, out_rank = grad_TF.shape, pending.thin_OR.shape[1], grad_pending.thin_OR.shape[1]
    slabs = triton.cdiv(width, _SLAB)
    parts = max(1, min(triton.cdiv(_SLAB_PROGRAMS, slabs), triton.cdiv(rows, _SLAB)))
    rows_each = triton.cdiv(triton.cdiv(rows, parts), _SLAB) * _SLAB
    d_thin = grad_TF.new_empty((parts, 2 * width, rank), dtype=torch.float32)
    d_out_thin = grad_TF.new_empty((parts, width, out_rank), dtype=torch.float32)
    _backward_columns[(slabs, parts)](
        gate_up_T2F, *pending, grad_TF, *grad_pending, d_thin, d_out_thin, rows, width, rows_each,
        R=rank, OUT_R=out_rank, SLAB=_SLAB,
    )  # fmt: skip
    return d_thin.sum(0), d_out_thin.sum(0)


def _shape(float8: bool, rank: int, out_rank: int) -> dict[str, int | bool]:
    return {"QUANTISE": float8, "R": rank, "OUT_R": out_rank, "ROWS": ROWS, "CHUNK": CHUNK, "SPAN": SPAN}
