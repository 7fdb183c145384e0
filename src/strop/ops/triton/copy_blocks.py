"""One kernel that copies blocks of one flat buffer to their places in another, or back."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64


class Block(NamedTuple):
    """A (rows, columns) block that is in two flat buffers: where it starts in each, and its strides.

    In the first, the inner one, a row's numbers are contiguous.
    """

    rows: int
    inner: int
    inner_row: int
    outer: int
    outer_row: int
    outer_column: int


@triton.jit
def _copy_blocks(
    inner_buffer, outer_buffer, tiles, columns, OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 6
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (row < tl.load(tile)) & (column < columns)
    inner = inner_buffer + tl.load(tile + 1) + row * tl.load(tile + 2) + column
    outer = outer_buffer + tl.load(tile + 3) + row * tl.load(tile + 4) + column * tl.load(tile + 5)
    if OUT:
        tl.store(outer, tl.load(inner, inside, 0.0), inside)
    else:
        tl.store(inner, tl.load(outer, inside, 0.0), inside)


def tiles_of(blocks: list[Block], device: torch.device) -> Tensor:
    """The blocks cut into tiles, one for each program, int32 (tiles, 6)."""
    table = []
    for rows, inner, inner_row, outer, outer_row, outer_column in blocks:
        for first in range(0, rows, _ROWS):
            here = (inner + first * inner_row, inner_row, outer + first * outer_row, outer_row, outer_column)
            table.append((min(_ROWS, rows - first), *here))
    return torch.tensor(table, dtype=torch.int32, device=device)


def copy_blocks(inner: Tensor, outer: Tensor, tiles: Tensor, columns: int, out: bool) -> None:
    """Copy every block from the outer buffer to the inner one, or from the inner one `out`, and change nothing else."""
    _copy_blocks[(len(tiles),)](
        inner, outer, tiles, columns, OUT=out, ROWS=_ROWS, COLUMNS=max(2, triton.next_power_of_2(columns))
    )
