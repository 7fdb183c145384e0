"""Frozen matrices in NF4, made dense again for each product."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from strop.ops.frozen_linear import FrozenWeight, Operand
from strop.ops.nf4 import Nf4, dequantise_into


class Scratch:
    """Memory for one dense matrix at a time, as large as a model's largest, shared by all of them.

    That is safe on one stream: a product has read the matrix before the next one's kernel, which comes after it in the
    stream, overwrites it. The same holds in a captured graph, which keeps the stream's order, and between graphs and
    eager runs, which all follow each other in the training stream. The buffer is made while a model is loaded, so it
    belongs to no graph's memory and stays where the graphs expect it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._buffer = torch.empty(0, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the dense matrices."""
        return self._buffer.dtype

    def reserve(self, count: int) -> None:
        """Make room for a matrix of so many numbers; only while a model is loaded."""
        if count > len(self._buffer):
            self._buffer = self._buffer.new_empty(count)

    def of(self, shape: torch.Size) -> Tensor:
        """The memory as a matrix, holding whatever was there last."""
        return self._buffer[: math.prod(shape)].view(shape)


class Nf4Weight(FrozenWeight):
    """An (O, I) matrix of parts that lie one under the other, each in NF4 by itself, as checkpoints quantise modules.

    A part may be dense: some 4-bit checkpoints leave single modules as they were.
    """

    kind = "nf4"

    def __init__(self, parts: Sequence[Nf4 | Tensor], scratch: Scratch) -> None:
        nn.Module.__init__(self)
        self.shape = torch.Size((sum(part.shape[0] for part in parts), parts[0].shape[1]))
        self._parts, self._scratch = tuple(parts), scratch
        for i, part in enumerate(parts):
            for name, tensor in (part.tensors() if isinstance(part, Nf4) else {"dense": part}).items():
                self.register_buffer(f"{name}_{i}", tensor, persistent=False)
        scratch.reserve(math.prod(self.shape))

    def dense(self) -> Tensor:
        """The matrix, in the scratch memory: good until any other matrix of the model is used."""
        out_OI = self._scratch.of(self.shape)
        for part, rows in zip(self._parts, out_OI.split([part.shape[0] for part in self._parts]), strict=True):
            if isinstance(part, Nf4):
                dequantise_into(part, rows)
            else:
                rows.copy_(part)
        return out_OI

    def product(self, x: Operand) -> Tensor:
        """X W^T, shape (T, O)."""
        return torch.mm(x.values, self.dense().t())

    def product_back(self, grad: Operand) -> Tensor:
        """Grad W, shape (T, I)."""
        return torch.mm(grad.values, self.dense())
