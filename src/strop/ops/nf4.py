"""NF4, bitsandbytes' 4-bit format of weights, bit for bit, and frozen matrices stored in it.

The format is that of Dettmers et al. 2023 (arXiv 2305.14314). The flattened matrix is cut into blocks of 64 numbers.
Each is stored as the nearest of 16 levels, quantiles of the normal distribution and an exact zero, times the block's
largest magnitude; two numbers per byte, the first in its upper half. With double quantisation those magnitudes, minus
their mean, are stored in 8 bits (`ops.blockwise`): 4.13 bits per weight instead of 4.5.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from strop.ops import kernels_for
from strop.ops.blockwise import BLOCK as NESTED_BLOCK
from strop.ops.blockwise import dequantise_blockwise, dynamic_code, quantise_blockwise
from strop.ops.linear import FrozenWeight, Operand

# arXiv 2305.14314, appendix E.
LEVELS = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
          -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
          0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
          1.0)  # fmt: skip
BLOCK = 64

_PIECE = BLOCK << 16
"""Numbers quantised at a time, so that loading a large matrix takes little extra memory."""


class Nested(NamedTuple):
    """What doubly quantised magnitudes need beside their codes.

    Attributes:
        absmax_G: float32, the largest magnitude of each 256 of them, after the mean was subtracted.
        offset: Their mean, a float32 scalar.
        code: The 256 numbers that the codes stand for.
    """

    absmax_G: Tensor
    offset: Tensor
    code: Tensor


class Nf4(NamedTuple):
    """A matrix in NF4.

    Attributes:
        packed: uint8, two numbers per byte.
        absmax_B: Each block's largest magnitude: float32, or uint8 codes if there is `nested`.
        nested: See `Nested`.
        shape: Of the matrix.
    """

    packed: Tensor
    absmax_B: Tensor
    nested: Nested | None
    shape: tuple[int, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Its own tensors, by name."""
        held = {"packed": self.packed, "absmax": self.absmax_B}
        return held | ({"nested_absmax": self.nested.absmax_G, "offset": self.nested.offset} if self.nested else {})


@cache
def levels(device: torch.device) -> Tensor:
    """The 16 levels, float32, made once for each device."""
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


def quantise(weight: Tensor, double: bool = True) -> Nf4:
    """A matrix rounded to NF4.

    Args:
        weight: Any shape, in float32 or narrower (wider ones are converted to float32 first).
        double: Quantise the blocks' magnitudes too, as QLoRA and Unsloth do.
    """
    pieces = [_quantise(piece) for piece in weight.reshape(-1).split(_PIECE)]
    packed, absmax_B = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    if not double:
        return Nf4(packed, absmax_B, None, tuple(weight.shape))
    offset = absmax_B.mean()
    codes_B, absmax_G = quantise_blockwise(absmax_B - offset, signed=True)
    return Nf4(packed, codes_B, Nested(absmax_G, offset, dynamic_code(True, weight.device)), tuple(weight.shape))


def _quantise(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes and magnitudes of a run of whole blocks; the last one of a matrix may be short."""
    wide = numbers.float()
    whole = len(wide) - len(wide) % BLOCK
    blocks, rest = wide[:whole].view(-1, BLOCK), wide[whole:]
    absmax_B = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax_B.clamp(min=1e-38))[:, None]).view(-1)
    if len(rest):  # bitsandbytes divides here, and multiplies by the inverse above
        largest = rest.abs().amax().clamp(min=1e-38)
        absmax_B, scaled = torch.cat((absmax_B, largest[None])), torch.cat((scaled, rest / largest))
    table = levels(wide.device)
    nearest = torch.bucketize(scaled, (table[:-1] + table[1:]) / 2, out_int32=True).to(torch.uint8)
    upper, lower = (
        torch.nn.functional.pad(nearest, (0, len(nearest) % 2), value=LEVELS.index(0.0)).view(-1, 2).unbind(1)
    )
    return (upper << 4) | lower, absmax_B


def dequantise(nf4: Nf4, dtype: torch.dtype) -> Tensor:
    """The rounded matrix: levels times magnitudes in float32, rounded to `dtype`."""
    out = torch.empty(nf4.shape, dtype=dtype, device=nf4.packed.device)
    dequantise_into(nf4, out)
    return out


def dequantise_into(nf4: Nf4, out: Tensor) -> None:
    """`dequantise` into a contiguous tensor of the matrix's shape; on a GPU one kernel that reads each byte once."""
    if kernels := kernels_for(out):
        kernels.nf4_dequantise(nf4.packed, nf4.absmax_B, nf4.nested, levels(out.device), BLOCK, out)
        return
    absmax_B, count = magnitudes(nf4), out.numel()
    halves = torch.stack((nf4.packed >> 4, nf4.packed & 15), dim=1).view(-1)[:count]
    scale = absmax_B.repeat_interleave(BLOCK)[:count]
    out.copy_((levels(out.device)[halves.int()] * scale).view(out.shape))


def magnitudes(nf4: Nf4) -> Tensor:
    """Each block's largest magnitude in float32."""
    if nf4.nested is None:
        return nf4.absmax_B
    return dequantise_blockwise(nf4.absmax_B, nf4.nested.absmax_G, nf4.nested.code) + nf4.nested.offset


def sizes(count: int) -> tuple[int, int, int]:
    """Bytes, blocks and blocks of blocks in a matrix of `count` numbers."""
    blocks = -(-count // BLOCK)
    return -(-count // 2), blocks, -(-blocks // NESTED_BLOCK)


class Scratch:
    """Memory for one dense matrix at a time, as large as a model's largest and shared by all of them.

    Sharing is safe on one stream: a product has read the matrix before the next one's kernel, which comes after it in
    the stream, overwrites it. The same is true in a captured graph, which keeps the stream's order, and between graphs
    and eager runs, which follow each other in the training stream. The buffer is allocated while a model is loaded, so
    it is in no graph's pool and stays where the graphs expect it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self._buffer = torch.empty(0, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the dense matrices."""
        return self._buffer.dtype

    def reserve(self, count: int) -> None:
        """Make room for a matrix of `count` numbers; only while a model is being loaded."""
        if count > len(self._buffer):
            self._buffer = self._buffer.new_empty(count)

    def of(self, shape: torch.Size) -> Tensor:
        """The memory as a matrix, with whatever was in it last."""
        return self._buffer[: math.prod(shape)].view(shape)


class Nf4Weight(FrozenWeight):
    """An (O, I) matrix of parts stacked by rows, each in NF4 by itself, as checkpoints quantise modules.

    A part may be dense: some 4-bit checkpoints leave a few modules unquantised.
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
        """The matrix, in the scratch memory: valid until any other matrix of the model is used."""
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
