"""Turn tensors into operands of frozen products, quantised row by row if the weight is float8."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.fused.thin import (
    CHUNK,
    ROWS,
    SPAN,
    Measured,
    Parts,
    add_thin_product,
    block_rows,
    grid,
    store_parts,
    sum_up,
)
from strop.ops.linear import Operand


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
def _quantise(x, values, scale, rows, width, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    row = block_rows(ROWS)
    real = row < rows
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place, inside = row[:, None] * width + column[None, :], real[:, None] & (column < width)[None, :]
    inverse = 1.0 / tl.load(scale + row, real, 1.0)
    x_tile = tl.load(x + place, inside, 0.0).to(tl.float32)
    tl.store(values + place, (x_tile * inverse[:, None]).to(values.dtype.element_ty), inside)


def new_values(like_TI: Tensor, width: int, float8: bool) -> Tensor:
    """Memory for an operand's values, not yet written."""
    return like_TI.new_empty((like_TI.shape[0], width), dtype=torch.float8_e4m3fn if float8 else like_TI.dtype)


def measure(x_TI: Tensor, thin_IR: Tensor) -> Measured:
    """Measure a tensor that was made elsewhere."""
    (rows, width), rank = x_TI.shape, thin_IR.shape[1]
    parts = Parts.new(x_TI, triton.cdiv(width, SPAN), rank)
    _measure[grid(rows, width)](x_TI, thin_IR, *parts, rows, width, R=rank, ROWS=ROWS, CHUNK=CHUNK, SPAN=SPAN)
    return Measured(x_TI, parts)


def operand_of(measured: Measured, scaling: float, float8: bool) -> tuple[Operand, Tensor]:
    """The operand of a product that reads x, and h = scaling * x W for the W it was measured with."""
    x_TI, parts = measured
    sums = sum_up(parts, scaling, float8, x_TI.dtype)
    if not float8:
        return Operand(x_TI), sums.h_TR
    rows, width = x_TI.shape
    values = new_values(x_TI, width, float8)
    programs = (triton.cdiv(rows, ROWS), triton.cdiv(width, CHUNK))
    _quantise[programs](x_TI, values, sums.scale_T, rows, width, ROWS=ROWS, CHUNK=CHUNK)
    return Operand(values, sums.scale_T), sums.h_TR
