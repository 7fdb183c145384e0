"""LoRA's parameters as the fused ops read them: thin matrices in the weights' type, made from the flat buffer.

The optimizer keeps every A and B in one float32 buffer, in PEFT's shapes. For each merged projection the kernels want
A transposed, (I, R), with a block of columns for each module, and B, (O, width), in which each row belongs to one
module. Block width and R are powers of two, padded with zeros. A table of tiles maps each block of one buffer to its
place in the other, so one kernel makes all thin matrices after an update, and one copies all gradients back. Casting
each A and B where it is used took about 1,000 launches a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strop.model.decoder import Projection
from strop.model.lora import LoraAdapter, projections
from strop.model.pretrained.tensors import part_rows
from strop.ops.triton.copy_blocks import Block, copy_blocks, tiles_of
from strop.ops.triton.thin import Blocks


@dataclass(frozen=True, slots=True)
class ThinPair:
    """One projection's thin matrices and their gradients.

    Attributes:
        a_IR: A transposed, in the weights' type.
        b_OR: B, each row with the columns of the one module that it belongs to.
        grad_a_IR: Gradient of `a_IR`, float32; backward passes add into it.
        grad_b_OR: The same for `b_OR`.
        blocks: Which columns of A each part of the output uses: q, k and v; gate and up; or the only part.
        rows: The output rows of each part.
    """

    a_IR: Tensor
    b_OR: Tensor
    grad_a_IR: Tensor
    grad_b_OR: Tensor
    blocks: Blocks
    rows: tuple[tuple[int, int], ...]


class LoraWork:
    """The working copy of an adapter.

    Attributes:
        thin: Each projection's matrices, by (layer, group); views of one buffer, all zeros without LoRA.
        grad: The buffer with all gradients.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self._adapter = adapter
        named, device = projections(adapter.decoder), adapter.decoder.device
        width = max(16, _power_of_two(adapter.section.r))
        sizes = {key: _sizes(projection, width) for key, projection in named.items()}
        total = sum(sum(pair) for pair in sizes.values())
        self._values = torch.zeros(total, dtype=adapter.decoder.dtype, device=device)
        self.grad = torch.zeros(total, dtype=torch.float32, device=device)
        self.thin, start, copied = {}, 0, []
        for (layer, group), projection in named.items():
            copied += _copied(projection, width, start)
            rows = part_rows(adapter.decoder.config)[group]
            rank = _thin_width(projection, width)
            pair, end = sizes[layer, group], start + sum(sizes[layer, group])
            a, b, grad_a, grad_b = (
                piece.view(-1, columns)
                for buffer in (self._values, self.grad)
                for piece, columns in zip(buffer[start:end].split(pair), (rank, width), strict=True)
            )
            blocks = Blocks(width, _block_starts(projection, rows, width), rank)
            self.thin[layer, group] = ThinPair(a, b, grad_a, grad_b, blocks, rows)
            start = end
        self._tiles = tiles_of(copied, device)

    def refresh(self) -> None:
        """Copy the current parameters in."""
        copy_blocks(self._values, self._adapter.flat, self._tiles, self._adapter.section.r, out=False)

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self.grad.zero_()

    def collect(self) -> Tensor:
        """The gradients in the order of the adapter's buffer, ready for the optimizer."""
        grad = torch.empty_like(self._adapter.flat)
        copy_blocks(self.grad, grad, self._tiles, self._adapter.section.r, out=True)
        return grad


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _thin_width(projection: Projection, block: int) -> int:
    return block * _power_of_two(len(projection.lora.rows) if projection.lora else 1)


def _sizes(projection: Projection, block: int) -> list[int]:
    """Element counts of a projection's a_IR and b_OR."""
    height, inputs = projection.frozen.shape
    return [inputs * _thin_width(projection, block), height * block]


def _block_starts(projection: Projection, parts: tuple[tuple[int, int], ...], block: int) -> tuple[int, ...]:
    """The first column of each part's module; 0 for a part without LoRA, whose rows of B are zeros."""
    modules = projection.lora.rows if projection.lora else ()
    owners = [[i for i, (first, last) in enumerate(modules) if first <= part < last] for part, _ in parts]
    return tuple(block * owner[0] if owner else 0 for owner in owners)


def _copied(projection: Projection, block: int, start: int) -> list[Block]:
    """Where each module's A and B lie in the adapter's buffer and, from `start` on, in the working copy."""
    if projection.lora is None:
        return []
    (_, inputs), terms = projection.frozen.shape, projection.lora
    a, b = (int(parameter.storage_offset()) for parameter in (terms.a_RI, terms.b_OR))
    rank, width, blocks = terms.b_OR.shape[1], _thin_width(projection, block), []
    for i, (first, last) in enumerate(terms.rows):
        blocks.append(Block(inputs, start + i * block, width, a + i * rank * inputs, 1, inputs))
        blocks.append(Block(last - first, start + inputs * width + first * block, block, b, rank, 1))
        b += (last - first) * rank
    return blocks
