"""Logits -> the next token of each sequence: the likeliest, or one drawn at a temperature from a nucleus."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_GREEDY_BELOW = 1e-5
"""A temperature under this takes the likeliest token; logits divided by less would leave float32's range."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above 0, draws from softmax(logits / temperature).
        top_p: Draw only from the smallest set of likeliest tokens whose probabilities add up to this (Holtzman et
            al. 2020, nucleus sampling); 1 draws from all.
        seed: Seed of the draws. Each prompt has its own stream, so its draws do not depend on its neighbours.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be 0 or more, top_p {self.top_p} in (0, 1]")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW

    def generator(self, row: int) -> torch.Generator:
        """The random number generator of a prompt, by its index."""
        # torch takes 32 bits of a seed; a digest keeps neighbouring seeds and rows apart.
        digest = hashlib.sha256(f"{self.seed} {row}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


def choose(
    logits_BV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> list[int | Exception]:
    """A token for each row, each chosen in its own way; an exception for a row whose logits allow no choice."""
    chosen: list[int | Exception] = list(logits_BV.argmax(-1).tolist())
    drawn = [i for i, sampling in enumerate(samplings) if not sampling.is_greedy]
    if not drawn:
        return chosen
    rows_DV = logits_BV if len(drawn) == len(samplings) else logits_BV[drawn]
    heat_D1 = torch.tensor([[samplings[i].temperature] for i in drawn], device=logits_BV.device)
    probabilities_DV = (rows_DV.float() / heat_D1).softmax(-1)
    mass_D1 = torch.tensor([[samplings[i].top_p] for i in drawn], device=logits_BV.device)
    for i, row_V in zip(drawn, nucleus(probabilities_DV, mass_D1).cpu(), strict=True):
        try:
            chosen[i] = int(torch.multinomial(row_V, 1, generator=generators[i]))
        except RuntimeError as error:  # not a number, which is this row's own trouble
            chosen[i] = error
    return chosen


def nucleus(probabilities_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    """Probabilities with all but each row's likeliest tokens of mass `top_p` set to zero; rows need not sum to one."""
    if bool((top_p_B1 == 1).all()):
        return probabilities_BV
    sorted_BV, order_BV = probabilities_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    is_tail_BV = (before_BV >= top_p_B1) & (top_p_B1 < 1)  # rounding may end a sum of all just above 1
    return torch.zeros_like(probabilities_BV).scatter_(-1, order_BV, sorted_BV.masked_fill(is_tail_BV, 0.0))
