"""The logits of one more token for every running sequence, computed eagerly or by CUDA graphs.

A step of a small model is a few milliseconds of kernels and, launched one by one, ten times that of Python. So on a GPU
a step has one of a few shapes (slots rounded up to a power of two, positions to a multiple of `_WIDTH`). The first step
of a shape runs eagerly, which also compiles its kernels, the second is captured, and later ones replay the graph. Only
a small block of numbers changes between steps; it is copied to where the graph reads it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from strop.evaluation.kv_cache import KVCache
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter
from strop.ops.capturing import capturing

_WIDTH = 128
"""Positions by which a captured step's view of the cache grows. Each size costs a graph of about 50 ms and 20 MiB."""


class Steps(Protocol):
    """Computes decode steps on the first slots of a cache."""

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """The slots and positions that a step actually computes, given the slots and positions in use."""

    def __call__(self, block_3B: Tensor, width: int, tuned: bool | None) -> Tensor:
        """Logits (B, V), valid until the next step.

        Args:
            block_3B: int64 on the host, for the first B slots: token, its position, and 1 if the adapter is to be used
                for it.
            width: Positions of the cache that are read.
            tuned: Whether the adapter is used for all of them, if that is the same for all.
        """


class EagerSteps:
    """Steps of exactly the slots and positions in use."""

    def __init__(self, decoder: Decoder, cache: KVCache, adapter: LoraAdapter | None) -> None:
        self._decoder, self._cache, self._adapter = decoder, cache, adapter

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """Exactly those given."""
        return batch, filled

    def __call__(self, block_3B: Tensor, width: int, tuned: bool | None) -> Tensor:
        """See `Steps`."""
        block_3B = block_3B.to(self._decoder.device)
        _enable(self._adapter, block_3B, tuned)
        return compute(self._decoder, self._cache, block_3B, width)


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    block_3B: Tensor
    logits_BV: Tensor


class CapturedSteps:
    """Steps of a few shapes, each replayed as a CUDA graph from its second use on.

    A graph repeats exactly what it captured, including the addresses of the cache and whether the adapter was enabled.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, adapter: LoraAdapter | None) -> None:
        self._decoder, self._cache, self._adapter = decoder, cache, adapter
        self._seen: set[tuple[int, int, bool | None]] = set()
        self._graphs: dict[tuple[int, int, bool | None], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def shape(self, batch: int, filled: int) -> tuple[int, int]:
        """Slots up to a power of two, positions up to a multiple of 128, both within the cache."""
        slots = 1 << (batch - 1).bit_length()
        return min(slots, self._cache.slots), min(-(-filled // _WIDTH) * _WIDTH, self._cache.capacity)

    def __call__(self, block_3B: Tensor, width: int, tuned: bool | None) -> Tensor:
        """See `Steps`."""
        shape = (block_3B.shape[1], width, tuned)
        if shape not in self._seen:
            self._seen.add(shape)
            block_3B = block_3B.to(self._decoder.device)
            _enable(self._adapter, block_3B, tuned)
            return compute(self._decoder, self._cache, block_3B, width)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(block_3B, width, tuned)
        captured = self._graphs[shape]
        captured.block_3B.copy_(block_3B)
        captured.graph.replay()
        return captured.logits_BV

    def _capture(self, block_3B: Tensor, width: int, tuned: bool | None) -> _Graph:
        block_3B = block_3B.to(self._decoder.device)
        _enable(self._adapter, block_3B, tuned)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._decoder.device)
        with capturing(graph, self._pool):
            logits_BV = compute(self._decoder, self._cache, block_3B, width)
        return _Graph(graph, block_3B, logits_BV)


def _enable(adapter: LoraAdapter | None, block_3B: Tensor, tuned: bool | None) -> None:
    """Say for which slots the adapter is used; in a captured step, the graph reads it from its own block."""
    if adapter is not None:
        adapter.enable(block_3B[2, :, None] if tuned is None else tuned)


def choose_steps(decoder: Decoder, cache: KVCache, adapter: LoraAdapter | None) -> Steps:
    """Captured on a GPU, eager elsewhere."""
    kind = CapturedSteps if decoder.device.type == "cuda" else EagerSteps
    return kind(decoder, cache, adapter)


def compute(decoder: Decoder, cache: KVCache, block_3B: Tensor, width: int) -> Tensor:
    """The step itself, on the device: logits (B, V); the tokens' keys and values are in the cache afterwards."""
    token_B, position_B, _ = block_3B
    hidden_BD = decoder.hidden_states(token_B, position_B, position_B + 1, cache.writing(position_B, width))
    return decoder.logits(hidden_BD)
