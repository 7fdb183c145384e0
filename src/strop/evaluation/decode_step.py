"""One more token for every running sequence: its logits, computed eagerly or by CUDA graphs, and its choice from them.

A step of a small model is a few milliseconds of kernels and, launched one by one, ten times that of Python. So on a GPU
a step has one of a few shapes (slots rounded up to a power of two, positions to a multiple of `_WIDTH`). The first step
of a shape runs eagerly, which also compiles its kernels, the second is captured, and later ones replay the graph. Only
a small block of numbers changes between steps; it is copied to where the graph reads it.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strop.evaluation.kv_cache import KVCache
from strop.model.decoder import Decoder

_WIDTH = 128
"""Positions by which a captured step's view of the cache grows. Each size costs a graph of about 50 ms and 20 MiB."""


class Steps(Protocol):
    """Computes decode steps on the first slots of a cache."""

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """The slots and positions that a step actually computes, given the slots and positions in use."""

    def __call__(self, block_3B: Tensor, width: int) -> Tensor:
        """Logits (B, V), valid until the next step.

        Args:
            block_3B: int64 on the host: token, its position and the sequence's final length, for the first B slots.
            width: Positions of the cache that are read.
        """


class EagerSteps:
    """Steps of exactly the slots and positions in use."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """Exactly those given."""
        return batch, filled

    def __call__(self, block_3B: Tensor, width: int) -> Tensor:
        """See `Steps`."""
        return compute(self._decoder, self._cache, block_3B.to(self._decoder.device), width)


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    block_3B: Tensor
    logits_BV: Tensor


class CapturedSteps:
    """Steps of a few shapes, each replayed as a CUDA graph from its second use on.

    A graph repeats exactly what it captured, including whether the adapter was enabled, so it lives only as long as one
    call of `generate` or `stream`.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """Slots up to a power of two, positions up to a multiple of 128, both within the cache."""
        slots = 1 << (batch - 1).bit_length()
        return min(slots, self._cache.slots), min(-(-filled // _WIDTH) * _WIDTH, self._cache.capacity)

    def __call__(self, block_3B: Tensor, width: int) -> Tensor:
        """See `Steps`."""
        shape = (block_3B.shape[1], width)
        if shape not in self._seen:
            self._seen.add(shape)
            return compute(self._decoder, self._cache, block_3B.to(self._decoder.device), width)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(block_3B, width)
        captured = self._graphs[shape]
        captured.block_3B.copy_(block_3B)
        captured.graph.replay()
        return captured.logits_BV

    def _capture(self, block_3B: Tensor, width: int) -> _Graph:
        block_3B = block_3B.to(self._decoder.device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._decoder.device)
        with torch.cuda.graph(graph, pool=self._pool):
            logits_BV = compute(self._decoder, self._cache, block_3B, width)
        return _Graph(graph, block_3B, logits_BV)


def choose_steps(decoder: Decoder, cache: KVCache) -> Steps:
    """Captured on a GPU, eager elsewhere."""
    return CapturedSteps(decoder, cache) if decoder.device.type == "cuda" else EagerSteps(decoder, cache)


def compute(decoder: Decoder, cache: KVCache, block_3B: Tensor, width: int) -> Tensor:
    """The step itself, on the device: logits (B, V); the tokens' keys and values are in the cache afterwards."""
    token_B, position_B, final_B = block_3B
    hidden_BD = decoder.hidden_states(token_B, position_B, final_B, cache.writing(position_B, width))
    return decoder.logits(hidden_BD)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above 0, draws from softmax(logits / temperature).
        top_p: Draw only from the smallest set of likeliest tokens whose probabilities add up to this (Holtzman et
            al. 2020, nucleus sampling); 1 draws from all.
        seed: Seed of the draws. Each prompt has its own stream, so its answer does not depend on its neighbours.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be 0 or more, top_p {self.top_p} in (0, 1]")

    def generator(self, row: int) -> torch.Generator:
        """The random number generator of a prompt, by its index."""
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
