"""What the fused ops share: thin matrices, low-rank terms, and sums over a row that several programs compute.

A kernel that makes a tensor runs one program for each block of rows and span of columns, so that small batches have
enough programs too. What the next product needs from whole rows, their largest magnitude and their product with a thin
matrix, is stored as one partial result per span (`Parts`); whatever reads the tensor next adds them up, always in the
same order. The partials are a few percent of the tensor itself.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.linear import Operand

ROWS, CHUNK, SPAN = 64, 128, 512
"""Rows of a program, columns that it reads at a time, and columns that it reads in all."""


_SUM_ROWS = 16
"""Rows of a program that adds up parts; few, because each walks all spans."""

_SUM_NUMBERS = 4096
"""Partial results that it reads at a time; span by span, it would wait for memory each time."""


class LowRank(NamedTuple):
    """A term h W^T that whatever reads a (T, O) tensor must still add to it; W (O, R) is thin."""

    h_TR: Tensor
    thin_OR: Tensor


class Blocks(NamedTuple):
    """Which `width` columns of h each part of an output uses: q, k, v or gate, up.

    Modules that share an input share h, each with columns of its own. W has `width` columns: each row belongs to one
    module, and for the others it would be zeros. h has `rank` columns in all.
    """

    width: int
    starts: tuple[int, ...]
    rank: int


class Parts(NamedTuple):
    """Partial results of each span of a (T, I) tensor's columns, float32.

    Attributes:
        largest_ST: Largest magnitude.
        product_STR: The product with a thin W (I, R).
    """

    largest_ST: Tensor
    product_STR: Tensor

    @classmethod
    def new(cls, like_TI: Tensor, spans: int, rank: int) -> "Parts":
        """Room for the partial results of a tensor of as many rows as `like_TI`."""
        shape = (spans, like_TI.shape[0])
        return cls(
            like_TI.new_empty(shape, dtype=torch.float32), like_TI.new_empty((*shape, rank), dtype=torch.float32)
        )


class Measured(NamedTuple):
    """A tensor and what was measured when it was made."""

    x_TI: Tensor
    parts: Parts


def grid(rows: int, width: int) -> tuple[int, int]:
    """Programs for a (rows, width) tensor."""
    return triton.cdiv(rows, ROWS), triton.cdiv(width, SPAN)


def registers(most: int, rank: int) -> int | None:
    """A cap on a thread's registers, so that one more program fits on a multiprocessor.

    Tuned for ranks up to 16 (64 columns once modules are merged). Above that the cap causes spills, so there is none.
    """
    return most if rank <= 64 else None


@triton.jit
def block_rows(ROWS: tl.constexpr):
    """This program's rows."""
    return tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)


@triton.jit
def rows_of(x, row, real, R: tl.constexpr):
    """Rows `row` of a (T, R) tensor."""
    return tl.load(x + row[:, None] * R + tl.arange(0, R)[None, :], real[:, None], 0.0)


@triton.jit
def block_of(x, row, real, start, R: tl.constexpr, BLOCK: tl.constexpr):
    """Columns start to start + BLOCK of rows `row` of a (T, R) tensor."""
    return tl.load(x + row[:, None] * R + start + tl.arange(0, BLOCK)[None, :], real[:, None], 0.0)


@triton.jit
def thin_tile(thin, column, width, R: tl.constexpr):
    """Rows `column` of a thin matrix, (columns, R)."""
    return rows_of(thin, column, column < width, R)


@triton.jit
def add_low_rank(value, h, thin, column, width, R: tl.constexpr):
    """Value (rows, columns) + h W^T for these columns."""
    return tl.dot(h, tl.trans(thin_tile(thin, column, width, R)), value, input_precision="ieee")


@triton.jit
def add_thin_product(total, value, thin, column, width, R: tl.constexpr):
    """Total (rows, R) + value W for these columns."""
    tile = thin_tile(thin, column, width, R)
    return tl.dot(value.to(tile.dtype), tile, total, input_precision="ieee")


@triton.jit
def store_parts(largest_parts, product_parts, row, real, rows, largest, product, R: tl.constexpr):
    """Store this span's partial results."""
    place = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(largest_parts + place, largest, real)
    tl.store(product_parts + place[:, None] * R + tl.arange(0, R)[None, :], product, real[:, None])


@triton.jit
def _sum_up(
    largest_parts, product_parts, squares_parts, h, scale, factor, scaling, eps, rows, width, spans,
    QUANTISE: tl.constexpr, NORMED: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    row = block_rows(ROWS)
    real = row < rows
    # The rows' products with W lie side by side in each span: one run of ROWS * R numbers.
    place = tl.program_id(0).to(tl.int64) * ROWS * R + tl.arange(0, ROWS * R)
    inside = place < rows.to(tl.int64) * R
    largest, squares = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS * R], tl.float32)
    for start in range(0, spans, SPANS):
        span = start + tl.arange(0, SPANS)[:, None]
        tile = tl.load(product_parts + span * rows * R + place[None, :], (span < spans) & inside[None, :], 0.0)
        product += tl.sum(tile, 0)
        there = (span < spans) & real[None, :]
        if QUANTISE:
            largest = tl.maximum(largest, tl.max(tl.load(largest_parts + span * rows + row[None, :], there, 0.0), 0))
        if NORMED:
            squares += tl.sum(tl.load(squares_parts + span * rows + row[None, :], there, 0.0), 0)
    total = tl.reshape(product, [ROWS, R]) * scaling
    if NORMED:
        r = tl.rsqrt(squares / width + eps)
        tl.store(factor + row, r, real)
        largest *= r
        total *= r[:, None]
    tl.store(h + row[:, None] * R + tl.arange(0, R)[None, :], total, real[:, None])
    if QUANTISE:
        # The scale that takes a row's largest magnitude to float8_e4m3fn's largest number.
        tl.store(scale + row, tl.maximum(largest, 1e-30) / 448.0, real)


class Sums(NamedTuple):
    """What `Parts` add up to: h = scaling * x W, each row's float8 scale, a norm's factor 1 / sqrt(mean(x^2) + eps)."""

    h_TR: Tensor
    scale_T: Tensor | None
    factor_T: Tensor | None


def sum_up(
    parts: Parts, scaling: float, float8: bool, dtype: torch.dtype, squares_ST: Tensor | None = None, width: int = 1,
    eps: float = 0.0,
) -> Sums:  # fmt: skip
    """Add up the partial results of a tensor; given its sums of squares, those of the normalised tensor."""
    spans, rows, rank = parts.product_STR.shape
    new = parts.largest_ST.new_empty
    h_TR, scale_T = new((rows, rank), dtype=dtype), new(rows) if float8 else None
    factor_T = None if squares_ST is None else new(rows)
    _sum_up[(triton.cdiv(rows, _SUM_ROWS),)](
        *parts, squares_ST, h_TR, scale_T, factor_T, scaling, eps, rows, width, spans,
        QUANTISE=float8, NORMED=squares_ST is not None, R=rank, ROWS=_SUM_ROWS,
        SPANS=max(1, min(triton.next_power_of_2(spans), _SUM_NUMBERS // (_SUM_ROWS * rank))),
    )  # fmt: skip
    return Sums(h_TR, scale_T, factor_T)


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
