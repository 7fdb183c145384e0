"""LoRA's parameters as the fused ops read them: thin matrices in the weights' type, made from the flat buffer.

The optimizer keeps every A and B in one float32 buffer, in PEFT's shapes. The kernels want, for each merged projection,
A transposed (I, R) and B (O, R), with a block of columns for each of its modules, zeros elsewhere, and R a power of
two. An index for every element says where it comes from, so one kernel makes all of them after an update, and one
brings all gradients back. Casting each A and B where it is used took some 1,000 launches a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strop.model.decoder import Projection
from strop.model.lora import LoraAdapter, projections

_NOWHERE = -1


@dataclass(frozen=True, slots=True)
class ThinPair:
    """One projection's thin matrices and their gradients.

    Attributes:
        a_IR: A transposed, in the weights' type.
        b_OR: B, one block of columns a module.
        grad_a_IR: Gradient of `a_IR`, float32; backward passes add into it.
        grad_b_OR: Likewise of `b_OR`.
    """

    a_IR: Tensor
    b_OR: Tensor
    grad_a_IR: Tensor
    grad_b_OR: Tensor


class LoraWork:
    """The working copy of an adapter.

    Attributes:
        thin: Each projection's matrices, by (layer, group); views of one buffer. Zeros where it has no LoRA.
        grad: The buffer of all gradients.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self._adapter = adapter
        named = projections(adapter.decoder)
        ranks = {key: _thin_width(projection, adapter.section.r) for key, projection in named.items()}
        index = torch.cat([_index_of(projection, ranks[key]) for key, projection in named.items()])
        device, dtype = adapter.decoder.device, adapter.decoder.dtype
        self._index = index.to(device)
        back = torch.empty(adapter.num_parameters, dtype=torch.int32)
        filled = index >= 0
        back[index[filled].long()] = torch.arange(len(index), dtype=torch.int32)[filled]
        self._back = back.to(device)
        self._values = torch.zeros(len(index), dtype=dtype, device=device)
        self.grad = torch.zeros(len(index), dtype=torch.float32, device=device)
        self.thin = dict(zip(named, _views(self._values, self.grad, named, ranks), strict=True))

    def refresh(self) -> None:
        """Take over the parameters as they are now."""
        from strop.ops.fused.gather import gather

        gather(self._adapter.flat, self._index, self._values)

    def collect(self) -> None:
        """Write the gradients to where the optimizer reads them."""
        from strop.ops.fused.gather import gather

        gather(self.grad, self._back, self._adapter.flat_grad)


def _thin_width(projection: Projection, rank: int) -> int:
    modules = len(projection.lora.rows) if projection.lora else 1
    return max(16, 1 << (modules * rank - 1).bit_length())


def _index_of(projection: Projection, width: int) -> Tensor:
    """Where each element of a projection's a_IR and b_OR is in the flat buffer; int32, -1 for zeros."""
    height, inputs = projection.frozen.shape
    a_IR = torch.full((inputs, width), _NOWHERE, dtype=torch.int32)
    b_OR = torch.full((height, width), _NOWHERE, dtype=torch.int32)
    if terms := projection.lora:
        a, b = (_places(parameter) for parameter in (terms.a_RI, terms.b_OR))
        a_IR[:, : a.shape[0]] = a.t()
        rank, start = b.shape[1], 0
        for i, (first, last) in enumerate(terms.rows):
            b_OR[first:last, i * rank : (i + 1) * rank] = b[start : start + last - first]
            start += last - first
    return torch.cat((a_IR.flatten(), b_OR.flatten()))


def _places(parameter: Tensor) -> Tensor:
    start = int(parameter.storage_offset())
    return torch.arange(start, start + parameter.numel(), dtype=torch.int32).view(parameter.shape)


def _views(
    values: Tensor, grad: Tensor, named: dict[tuple[int, str], Projection], ranks: dict[tuple[int, str], int]
) -> list[ThinPair]:
    pairs, start = [], 0
    for key, projection in named.items():
        height, inputs = projection.frozen.shape
        shapes = ((inputs, ranks[key]), (height, ranks[key]))
        middle, end = start + inputs * ranks[key], start + (inputs + height) * ranks[key]
        halves = [(x[start:middle].view(shapes[0]), x[middle:end].view(shapes[1])) for x in (values, grad)]
        pairs.append(ThinPair(*halves[0], *halves[1]))
        start = end
    return pairs
