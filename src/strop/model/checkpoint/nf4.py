"""Checkpoints that bitsandbytes quantised to NF4, such as unsloth's "-bnb-4bit": what they say and how they are stored.

Beside each quantised matrix, packed into bytes, lie `.absmax`, `.quant_map`, with double quantisation `.nested_absmax`
and `.nested_quant_map`, and the rest as JSON in a tensor of bytes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from strop.model.checkpoint.headers import load_strict_json
from strop.ops.blockwise import BLOCK as NESTED_BLOCK
from strop.ops.blockwise import dynamic_code
from strop.ops.nf4 import BLOCK, LEVELS, Nested, Nf4, sizes

STATE = "quant_state.bitsandbytes__nf4"
"""What a quantised matrix's name is followed by, for the tensor that describes it."""


def stored_nf4(read: Callable[[str], Tensor], name: str) -> Nf4:
    """A quantised matrix as it is stored, bit for bit.

    Args:
        read: Gives any tensor of the checkpoint.
        name: The matrix's, which ends in .weight.

    Raises:
        ValueError: What is stored contradicts itself or is not the format that all of bitsandbytes writes.
    """
    state = load_strict_json(bytes(read(f"{name}.{STATE}").tolist()))
    _must(isinstance(state, dict), "its description is no object")
    _must(state.get("blocksize") == BLOCK, f"blocks of {state.get('blocksize')}, not {BLOCK}")
    shape = state.get("shape")
    _must(isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape), "no shape")
    count_bytes, count_blocks, count_nested = sizes(math.prod(shape))
    packed, absmax_B = read(name), read(f"{name}.absmax")
    levels = torch.tensor(LEVELS, device=packed.device)
    _must(_agree(read(f"{name}.quant_map"), levels), "its levels are not NF4's")
    _must(packed.dtype == torch.uint8 and packed.numel() == count_bytes, "its bytes do not fit its shape")
    _must(absmax_B.numel() == count_blocks, "its scales do not fit its shape")
    if "nested_blocksize" not in state:
        _must(absmax_B.is_floating_point(), "its scales are no numbers")
        return Nf4(packed.view(-1), absmax_B.float(), None, tuple(shape))
    absmax_G, code = read(f"{name}.nested_absmax").float(), read(f"{name}.nested_quant_map").float()
    _must(state["nested_blocksize"] == NESTED_BLOCK, f"scales in blocks of {state['nested_blocksize']}")
    _must(_agree(code, dynamic_code(True, code.device)), "another code for its scales")
    _must(absmax_B.dtype == torch.uint8 and absmax_G.numel() == count_nested, "its scales do not fit each other")
    _must(isinstance(state.get("nested_offset"), float), "no mean of its scales")
    offset = torch.tensor(state["nested_offset"], dtype=torch.float32, device=packed.device)
    return Nf4(packed.view(-1), absmax_B, Nested(absmax_G, offset, code), tuple(shape))


def _agree(stored: Tensor, ours: Tensor) -> bool:
    """Up to the last bits: what wrote the checkpoint may have had another version of torch's linspace."""
    return stored.shape == ours.shape and torch.allclose(stored.float(), ours, rtol=1e-5, atol=1e-7)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"no NF4 matrix that strop can read: {otherwise}")
