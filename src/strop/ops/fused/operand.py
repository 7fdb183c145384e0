"""Tensors made operands of frozen products: quantised row by row where the weight is float8."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.frozen_linear import Operand
from strop.ops.fused.thin import (
    CHUNK,
    ROWS,
    SPAN,
    Measured,
    Parts,
    add_thin_product,
    block_rows,
    float8_step,
    grid,
    max_of_parts,
    store_parts,
    store_product,
)


@triton.jit
def _measure(
    x, thin, largest_parts, product_parts, rows, width,
    R: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    largest, product = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, R], tl.float32)
    for start in range(0, SPAN, CHUNK):
        column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
        x_tile = tl.load(x + row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :], 0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(x_tile.to(tl.float32)), 1))
        product = add_thin_product(product, x_tile, thin, column, width, R)
    store_parts(largest_parts, product_parts, row, real, rows, largest, product, R)


@triton.jit
def _finish(
    x, values, scale, h, largest_parts, product_parts, scaling, rows, width, spans,
    QUANTISE: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    store_product(h, product_parts, row, real, rows, spans, scaling, R, ROWS)
    if QUANTISE:
        step = float8_step(max_of_parts(largest_parts, row, real, rows, spans, ROWS))
        if tl.program_id(1) == 0:
            tl.store(scale + row, step, real)
        for start in range(0, SPAN, CHUNK):
            column = tl.program_id(1) * SPAN + start + tl.arange(0, CHUNK)
            place, inside = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
            x_tile = tl.load(x + place, inside, 0.0).to(tl.float32)
            tl.store(values + place, (x_tile / step[:, None]).to(values.dtype.element_ty), inside)


def new_operand(like_TI: Tensor, width: int, float8: bool) -> Operand:
    """An operand still to be written."""
    rows = like_TI.shape[0]
    values = like_TI.new_empty((rows, width), dtype=torch.float8_e4m3fn if float8 else like_TI.dtype)
    return Operand(values, like_TI.new_empty(rows, dtype=torch.float32) if float8 else None)


def measure(x_TI: Tensor, thin_IR: Tensor) -> Measured:
    """Measure a tensor that comes from elsewhere."""
    (rows, width), rank = x_TI.shape, thin_IR.shape[1]
    parts = Parts.new(x_TI, triton.cdiv(width, SPAN), rank)
    _measure[grid(rows, width)](x_TI, thin_IR, *parts, rows, width, R=rank, ROWS=ROWS, CHUNK=CHUNK, SPAN=SPAN)
    return Measured(x_TI, parts)


def operand_of(measured: Measured, scaling: float, float8: bool) -> tuple[Operand, Tensor]:
    """The operand of a product that reads x, and h = scaling * x W for the W it was measured with."""
    x_TI, parts = measured
    rows, width = x_TI.shape
    spans, _, rank = parts.product_STR.shape
    operand = new_operand(x_TI, width, True) if float8 else Operand(x_TI)
    h_TR = x_TI.new_empty((rows, rank))
    programs = grid(rows, width) if float8 else (triton.cdiv(rows, ROWS), 1)
    _finish[programs](
        x_TI, *operand, h_TR, *parts, scaling, rows, width, spans,
        QUANTISE=float8, R=rank, ROWS=ROWS, CHUNK=CHUNK, SPAN=SPAN,
    )  # fmt: skip
    return operand, h_TR
