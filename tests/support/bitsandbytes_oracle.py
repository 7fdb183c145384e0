"""bitsandbytes, as far as its CPU build can be an oracle.

Two of the C++ kernels that stand in for its GPU kernels on a CPU compute something else (0.50.2): 8-bit quantisation
looks entries up in a table of 2^16 places and so misses the nearest one for numbers near zero, and 4-bit dequantisation
takes blocks along rows, which is wrong where a row is no multiple of 64. There its operators are asked for the
implementation that all devices share.
"""

from typing import Any

import torch
from torch import Tensor

_SHARED = torch._C.DispatchKey.CompositeExplicitAutograd


def functional() -> Any:
    """Its functions on quantised tensors; imported late, because that takes seconds."""
    import bitsandbytes.functional

    return bitsandbytes.functional


def quantise_blockwise(x: Tensor, code: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes and magnitudes, each number at the nearest entry."""
    functional()
    return torch.ops.bitsandbytes.quantize_blockwise.default._op_dk(_SHARED, x, code, block)  # type: ignore[no-any-return]


def quantise_nf4(weight: Tensor, double: bool) -> tuple[Tensor, Any]:
    """Bytes and state, double quantisation by the nearest entry."""
    packed, state = functional().quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    if double:
        state.offset = state.absmax.mean()
        code = functional().create_dynamic_map()
        state.absmax, nested = quantise_blockwise(state.absmax - state.offset, code, 256)
        state.state2 = functional().QuantState(nested, code=code, blocksize=256, dtype=torch.float32)
        state.nested = True
    return packed, state


def dequantise_nf4(packed: Tensor, state: Any) -> Tensor:
    """The matrix, in the type that the state names."""
    if state.shape[-1] % 64 == 0:
        return functional().dequantize_4bit(packed, state)  # type: ignore[no-any-return]
    absmax = (
        functional().dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    )
    arguments = (absmax, state.blocksize, state.quant_type, state.shape, state.dtype)
    with torch.compiler.set_stance("force_eager"):
        return torch.ops.bitsandbytes.dequantize_4bit.default._op_dk(_SHARED, packed, *arguments)  # type: ignore[no-any-return]
