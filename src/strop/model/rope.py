"""Tables of cosines and sines for a model's positions."""

import math

import torch
from torch import Tensor, nn

from strop.model.rope_config import RopeConfig


class RotaryTable(nn.Module):
    """The angle of every position, at the frequencies that the checkpoint's config sets.

    Angles are computed in float32 and only then cast, whatever the model's type: in bfloat16 positions beyond 256
    would collide. LongRoPE has two sets of frequencies; a sample uses the long one if it is longer than the length
    the model was pre-trained on. Each sample's own length decides, so packing cannot change the result.
    """

    inv_freq: Tensor
    long_inv_freq: Tensor

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.attention_factor = config.attention_factor
        self.long_from = config.long_from
        exponents = torch.arange(0, config.width, 2, dtype=torch.int64).float() / config.width
        inv_freq = 1.0 / config.theta**exponents
        long_inv_freq = inv_freq
        if config.kind == "linear":
            inv_freq = inv_freq / config.parameters["factor"]
        elif config.kind == "llama3":
            inv_freq = _llama3(inv_freq, config)
        elif config.kind == "longrope":
            short, long = (torch.tensor(config.parameters[f"{kind}_factor"]) for kind in ("short", "long"))
            inv_freq, long_inv_freq = (
                1.0 / (short * config.theta**exponents),
                1.0 / (long * config.theta**exponents),
            )
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("long_inv_freq", long_inv_freq, persistent=False)

    def forward(self, positions_T: Tensor, sample_lengths_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cos and sin, each (T, width / 2), of the given positions.

        Args:
            positions_T: Position of each token in its own sample.
            sample_lengths_T: Length of the sample that each token belongs to, including tokens still to be generated.
            dtype: The type of the result.
        """
        inv_freq = self.inv_freq
        if self.long_from is not None:
            is_long = (sample_lengths_T > self.long_from)[:, None]
            inv_freq = torch.where(is_long, self.long_inv_freq, self.inv_freq)
        angles = positions_T[:, None].float() * inv_freq
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)


def _llama3(inv_freq: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1's stretch: long wavelengths divided by the factor, short ones kept, a ramp between.

    Source: transformers' `_compute_llama3_parameters`, after Meta's reference code.
    """
    factor = config.parameters["factor"]
    low, high = config.parameters["low_freq_factor"], config.parameters["high_freq_factor"]
    wavelength = 2 * math.pi / inv_freq
    ramp = (config.original_positions / wavelength - low) / (high - low)
    smoothed = (1 - ramp) * inv_freq / factor + ramp * inv_freq
    stretched = torch.where(wavelength > config.original_positions / low, inv_freq / factor, inv_freq)
    between = (wavelength >= config.original_positions / high) & (wavelength <= config.original_positions / low)
    return torch.where(between, smoothed, stretched)
