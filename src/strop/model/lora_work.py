"""LoRA's parameters as the fused ops read them: thin matrices in the weights' type, made from the flat buffer.

The optimizer keeps every A and B in one float32 buffer, in PEFT's shapes. The kernels want, for each merged projection,
A transposed (I, R) and B (O, R), with a block of columns for each of its modules and zeros elsewhere; the width of a
block and R are powers of two. An index for every element says where it comes from, so one kernel makes all of them
after an update, and one brings all gradients back. Casting each A and B where it is used took some 1,000 launches a
step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strop.model.decoder import Projection
from strop.model.lora import LoraAdapter, projections
from strop.model.weights import part_rows
from strop.ops.fused.gather import gather
from strop.ops.fused.thin import Blocks

_NOWHERE = -1


@dataclass(frozen=True, slots=True)
class ThinPair:
    """One projection's thin matrices and their gradients.

    Attributes:
        a_IR: A transposed, in the weights' type.
        b_OR: B, one block of columns a module.
        grad_a_IR: Gradient of `a_IR`, float32; backward passes add into it.
        grad_b_OR: Likewise of `b_OR`.
        blocks: Which columns each part of the output uses: q, k and v; gate and up; or the one part there is.
    """

    a_IR: Tensor
    b_OR: Tensor
    grad_a_IR: Tensor
    grad_b_OR: Tensor
    blocks: Blocks


class LoraWork:
    """The working copy of an adapter.

    Attributes:
        thin: Each projection's matrices, by (layer, group); views of one buffer. Zeros where it has no LoRA.
        grad: The buffer of all gradients.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self._adapter = adapter
        named = projections(adapter.decoder)
        block = max(16, _power_of_two(adapter.section.r))
        index = torch.cat([_index_of(projection, block) for projection in named.values()])
        device, dtype = adapter.decoder.device, adapter.decoder.dtype
        filled = (index >= 0).nonzero().squeeze(1)
        self._index, self._back = index, torch.empty(adapter.num_parameters, dtype=torch.int32, device=device)
        self._back[index[filled].long()] = filled.int()
        self._values = torch.zeros(len(index), dtype=dtype, device=device)
        self.grad = torch.zeros(len(index), dtype=torch.float32, device=device)
        self.thin, start = {}, 0
        for (layer, group), projection in named.items():
            starts = _block_starts(projection, part_rows(adapter.decoder.config)[group], block)
            width = _thin_width(projection, block)
            (height, inputs), end = projection.frozen.shape, start + sum(projection.frozen.shape) * width
            sizes = [inputs * width, height * width]
            a, b, grad_a, grad_b = (
                piece.view(-1, width)
                for buffer in (self._values, self.grad)
                for piece in buffer[start:end].split(sizes)
            )
            self.thin[layer, group] = ThinPair(a, b, grad_a, grad_b, Blocks(block, starts))
            start = end

    def refresh(self) -> None:
        """Take over the parameters as they are now."""
        gather(self._adapter.flat, self._index, self._values)

    def collect(self) -> None:
        """Write the gradients to where the optimizer reads them."""
        gather(self.grad, self._back, self._adapter.flat_grad)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _thin_width(projection: Projection, block: int) -> int:
    return block * _power_of_two(len(projection.lora.rows) if projection.lora else 1)


def _block_starts(projection: Projection, parts: tuple[tuple[int, int], ...], block: int) -> tuple[int, ...]:
    """The first column of each part's module; 0, whose rows are zeros there, for a part without LoRA."""
    modules = projection.lora.rows if projection.lora else ()
    owners = [[i for i, (first, last) in enumerate(modules) if first <= part < last] for part, _ in parts]
    return tuple(block * owner[0] if owner else 0 for owner in owners)


def _index_of(projection: Projection, block: int) -> Tensor:
    """Where each element of a projection's a_IR and b_OR is in the flat buffer; int32, -1 for zeros."""
    height, inputs = projection.frozen.shape
    width = _thin_width(projection, block)
    device = projection.frozen.weight.device
    a_IR, b_OR = (torch.full((n, width), _NOWHERE, dtype=torch.int32, device=device) for n in (inputs, height))
    if terms := projection.lora:
        a, b = (_places(parameter) for parameter in (terms.a_RI, terms.b_OR))
        rank, start = b.shape[1], 0
        for i, (first, last) in enumerate(terms.rows):
            columns = slice(i * block, i * block + rank)
            a_IR[:, columns] = a[i * rank : (i + 1) * rank].t()
            b_OR[first:last, columns] = b[start : start + last - first]
            start += last - first
    return torch.cat((a_IR.flatten(), b_OR.flatten()))


def _places(parameter: Tensor) -> Tensor:
    start = int(parameter.storage_offset())
    places = torch.arange(start, start + parameter.numel(), dtype=torch.int32, device=parameter.device)
    return places.view(parameter.shape)
