"""Logits -> the next token: the likeliest, or a seeded draw."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above, draws from softmax(logits / temperature).
        top_p: Draw only from the fewest likeliest tokens whose probabilities add up to this (Holtzman et al. 2020,
            nucleus sampling); 1 draws from all.
        seed: Of the draws. Each prompt has its own stream of them, so its answer does not depend on its neighbours.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be 0 or more, top_p {self.top_p} in (0, 1]")

    def generator(self, row: int) -> torch.Generator:
        """The random numbers of a prompt, by its index."""
        # torch takes 32 bits of a seed; a digest keeps neighbouring seeds and rows apart.
        digest = hashlib.sha256(f"{self.seed} {row}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4]))

    def choose(self, logits_BV: Tensor, generators: list[torch.Generator]) -> list[int]:
        """A token for each row."""
        if self.temperature == 0.0:
            return logits_BV.argmax(-1).tolist()
        probabilities_BV = nucleus((logits_BV.float() / self.temperature).softmax(-1), self.top_p).cpu()
        return [
            int(torch.multinomial(row_V, 1, generator=generator))
            for row_V, generator in zip(probabilities_BV, generators, strict=True)
        ]


def nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with all but the likeliest tokens of mass `top_p` set to zero; rows need not sum to one."""
    if top_p == 1.0:
        return probabilities_BV
    sorted_BV, order_BV = probabilities_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return torch.zeros_like(probabilities_BV).scatter_(-1, order_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0))
