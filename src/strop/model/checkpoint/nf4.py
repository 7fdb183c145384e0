"""Checkpoints that bitsandbytes quantised to NF4, such as unsloth's "-bnb-4bit": how to recognise and read them.

Each quantised matrix is packed into bytes. Beside it are `.absmax` and `.quant_map`; with double quantisation, also
`.nested_absmax` and `.nested_quant_map`; and everything else as JSON in a tensor of bytes.
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
"""Suffix to a quantised matrix's name that gives the tensor describing it."""


def stored_nf4(read: Callable[[str], Tensor], name: str) -> Nf4:
    """A quantised matrix as it is stored, bit for bit.

    Args:
        read: Reads a tensor of the checkpoint by name.
        name: The name of the matrix, which ends in .weight.

    Raises:
        ValueError: The tensors contradict each other or are not in the format that all of bitsandbytes writes.
    """
    state = load_strict_json(bytes(read(f"{name}.{STATE}").tolist()))
    _must(isinstance(state, dict), "its description is not an object")
    _must(state.get("blocksize") == BLOCK, f"blocks of {state.get('blocksize')}, not {BLOCK}")
    shape = state.get("shape")
    _must(
        isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape),
        "its shape is missing or invalid",
    )
    count_bytes, count_blocks, count_nested = sizes(math.prod(shape))
    packed, absmax_B = read(name), read(f"{name}.absmax")
    levels = torch.tensor(LEVELS, device=packed.device)
    _must(_agree(read(f"{name}.quant_map"), levels), "its levels are not NF4's")
    _must(packed.dtype == torch.uint8 and packed.numel() == count_bytes, "its bytes do not match its shape")
    _must(absmax_B.numel() == count_blocks, "its scales do not match its shape")
    if "nested_blocksize" not in state:
        _must(absmax_B.is_floating_point(), "its scales are not numbers")
        return Nf4(packed.view(-1), absmax_B.float(), None, tuple(shape))
    absmax_G, code = read(f"{name}.nested_absmax").float(), read(f"{name}.nested_quant_map").float()
    _must(state["nested_blocksize"] == NESTED_BLOCK, f"scales in blocks of {state['nested_blocksize']}")
    _must(_agree(code, dynamic_code(True, code.device)), "its scales use another code")
    _must(absmax_B.dtype == torch.uint8 and absmax_G.numel() == count_nested, "its scales do not match each other")
    _must(isinstance(state.get("nested_offset"), float), "the mean of its scales is missing")
    offset = torch.tensor(state["nested_offset"], dtype=torch.float32, device=packed.device)
    return Nf4(packed.view(-1), absmax_B, Nested(absmax_G, offset, code), tuple(shape))


def _agree(stored: Tensor, ours: Tensor) -> bool:
    """Equal up to the last bits: the writer may have used another version of torch's linspace."""
    return stored.shape == ours.shape and torch.allclose(stored.float(), ours, rtol=1e-5, atol=1e-7)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"not an NF4 matrix that strop can read: {otherwise}")
