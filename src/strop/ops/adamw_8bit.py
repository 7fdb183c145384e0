"""AdamW with both moments in 8 bits and a scale for every 256 of them (Dettmers et al. 2022, arXiv 2110.02861).

Computed as in bitsandbytes: both moments are expanded to float32, the step is AdamW's in float32, and the new moments
are rounded to the nearest entry of the dynamic code, signed for the first and unsigned for the second.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from strop.ops import kernels_for
from strop.ops.blockwise import BLOCK, dequantise_blockwise, dynamic_code, quantise_blockwise

_PIECE = BLOCK << 12
"""Numbers updated at a time when there is no kernel: the float32 moments of a million fit in a cache."""


class Moments(NamedTuple):
    """The optimizer's state, updated in place.

    Attributes:
        mean_N: uint8 codes of the first moment.
        mean_absmax_B: float32, the largest magnitude of each 256 numbers.
        square_N: uint8 codes of the second moment.
        square_absmax_B: Likewise.
        step: Updates made, a float32 scalar on the device.
    """

    mean_N: Tensor
    mean_absmax_B: Tensor
    square_N: Tensor
    square_absmax_B: Tensor
    step: Tensor

    @classmethod
    def zeros(cls, parameter_N: Tensor) -> "Moments":
        """The state before the first update."""
        count, blocks = len(parameter_N), -(-len(parameter_N) // BLOCK)
        device = parameter_N.device
        codes = [torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2)]  # any code: times zero
        absmax = [torch.zeros(blocks, device=device) for _ in range(2)]
        return cls(codes[0], absmax[0], codes[1], absmax[1], torch.zeros((), device=device))


class AdamWSettings(NamedTuple):
    """AdamW's hyperparameters."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def adamw_8bit(
    parameter_N: Tensor, grad_N: Tensor, moments: Moments, settings: AdamWSettings, learning_rate: float, skip: Tensor
) -> None:
    """Update parameters and moments in place; nothing of either changes where `skip`, a bool on the device, is true."""
    moments.step.add_(~skip)
    # In float64: 1 - beta2^step is a difference of numbers near one.
    exponent = moments.step.double()
    root = (1 - settings.beta2**exponent).sqrt().float()
    rate = (learning_rate / (1 - settings.beta1**exponent)).float()
    keep = 1 - learning_rate * settings.weight_decay
    if kernels := kernels_for(parameter_N):
        betas, rates = (settings.beta1, settings.beta2), torch.stack((rate, root))
        kernels.adamw_8bit(parameter_N, grad_N, moments[:4], betas, settings.eps, rates, keep, skip)
        return
    signed, unsigned = (dynamic_code(sign, parameter_N.device) for sign in (True, False))
    for start in range(0, len(parameter_N), _PIECE):
        here, blocks = slice(start, start + _PIECE), slice(start // BLOCK, (start + _PIECE) // BLOCK)
        piece = [moments.mean_N[here], moments.mean_absmax_B[blocks]]
        piece += [moments.square_N[here], moments.square_absmax_B[blocks]]
        old, grad = parameter_N[here], grad_N[here].float()
        mean = dequantise_blockwise(piece[0], piece[1], signed).mul_(settings.beta1)
        square = dequantise_blockwise(piece[2], piece[3], unsigned).mul_(settings.beta2)
        mean.add_(grad, alpha=1 - settings.beta1)
        square.addcmul_(grad, grad, value=1 - settings.beta2)
        new = old * keep - rate * (mean / (square.sqrt() / root + settings.eps))
        made = (new, *quantise_blockwise(mean, True), *quantise_blockwise(square, False))
        for target, value in zip((old, *piece), made, strict=True):
            target.copy_(torch.where(skip, target, value))
