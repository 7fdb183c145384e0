"""Numbers in 8 bits with a scale for every block of 256: bitsandbytes' dynamic code.

It stores NF4's scales when they are quantised once more (`ops.nf4`), and the moments of 8-bit AdamW (`ops.adamw_8bit`).
An entry of the code has one of seven decimal exponents and a fraction that is finer for larger numbers
(Dettmers 2016, arXiv 1511.04561; Dettmers et al. 2022, arXiv 2110.02861).
"""

from functools import cache

import torch
from torch import Tensor

BLOCK = 256
_EXPONENTS = 7


@cache
def dynamic_code(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers in [-1, 1], or in [0, 1], that a byte stands for, ascending; made once for each device."""
    numbers = [0.0, 1.0]
    for i in range(_EXPONENTS):
        bounds = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1, dtype=torch.float32)
        means = (10 ** (i + 1 - _EXPONENTS) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        numbers += means + [-mean for mean in means if signed]
    return torch.tensor(sorted(numbers), dtype=torch.float32, device=device)


@cache
def midpoints(signed: bool, device: torch.device) -> Tensor:
    """The 255 numbers halfway between those of the code; a number on one rounds to the lower neighbour."""
    code = dynamic_code(signed, device)
    return (code[:-1] + code[1:]) / 2


def quantise_blockwise(x_N: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The nearest entry of the code for each number, as uint8 (N,), and each block's largest magnitude, float32 (B,).

    This is what bitsandbytes' GPU kernels and its reference compute. Its CPU library (0.50.2) looks the entry up in a
    table of 2^16 places instead and so misses the nearest one for numbers near zero.
    """
    padded = torch.nn.functional.pad(x_N.float(), (0, -len(x_N) % BLOCK)).view(-1, BLOCK)
    absmax_B = padded.abs().amax(1)
    scaled = padded * (1.0 / absmax_B.clamp(min=1e-38))[:, None]
    codes = torch.bucketize(scaled, midpoints(signed, x_N.device), out_int32=True).to(torch.uint8)
    return codes.view(-1)[: len(x_N)].clone(), absmax_B


def dequantise_blockwise(codes_N: Tensor, absmax_B: Tensor, code: Tensor) -> Tensor:
    """The numbers that codes stand for, float32 (N,)."""
    return code[codes_N.int()] * absmax_B.repeat_interleave(BLOCK)[: len(codes_N)]
