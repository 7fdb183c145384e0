"""One kernel that lays a tensor out anew."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _gather(source, index, out, count, ADD: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    place = tl.load(index + i, inside, -1)
    value = tl.load(source + place, place >= 0, 0.0).to(tl.float32)
    if ADD:
        value += tl.load(out + i, inside, 0.0)
    tl.store(out + i, value, inside)


def gather(source: Tensor, index: Tensor, out: Tensor, add: bool = False) -> None:
    """Out[i] = source[index[i]], or zero where the index is -1; added to what is there if `add`."""
    _gather[(triton.cdiv(out.numel(), _BLOCK),)](source, index, out, out.numel(), ADD=add, BLOCK=_BLOCK)
