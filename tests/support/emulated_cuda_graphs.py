"""CUDA graphs of training and of generation where there is no GPU: each replay is the computation, done again.

What is emulated is CUDA's contract and no more: capturing computes nothing, and a replay reads the tensors that were
read while it was captured, whatever is in them by then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from strop.evaluation import decode_step, pool
from strop.fused.capture import CapturedGradients
from strop.model.decoder import Decoder
from strop.model.lora import projections


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    nll: Tensor
    compute: Callable[[], Tensor]
    replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.nll.copy_(self.compute())


def emulate_graphs(patch: pytest.MonkeyPatch) -> None:
    compute = CapturedGradients._compute
    capturing: list[Graph] = []

    @contextmanager
    def graph(made: Graph, **_: Any) -> Iterator[None]:
        capturing.append(made)
        yield
        capturing.pop()

    def computed(self: CapturedGradients, block: Tensor, capacity: Any) -> Tensor:
        if not capturing:
            return compute(self, block, capacity)
        made, made.nll = capturing[-1], torch.zeros(())
        made.compute = lambda: compute(self, block, capacity)
        return made.nll

    patch.setattr(CapturedGradients, "_compute", computed)
    patch.setattr(torch.cuda, "CUDAGraph", Graph)
    patch.setattr(torch.cuda, "graph", graph)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    patch.setattr(torch.cuda, "synchronize", lambda device: None)
    patch.setattr(torch.cuda, "empty_cache", lambda: None)


class DecodeGraph:
    """Stands for torch.cuda.CUDAGraph in `evaluation.decode_step`."""

    shape: tuple[int, int]
    logits: Tensor
    compute: Callable[[], Tensor]
    replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.logits.copy_(self.compute())


def emulate_decode_graphs(patch: pytest.MonkeyPatch) -> list[DecodeGraph]:
    """Generation takes `CapturedSteps`; returned is the list of graphs as they are captured."""
    compute = decode_step.compute
    capturing: list[DecodeGraph] = []
    made_graphs: list[DecodeGraph] = []

    @contextmanager
    def graph(made: DecodeGraph, **_: Any) -> Iterator[None]:
        capturing.append(made)
        made_graphs.append(made)
        yield
        capturing.pop()

    def computed(decoder: Decoder, cache: Any, block: Tensor, width: int) -> Tensor:
        if not capturing:
            return compute(decoder, cache, block, width)
        made = capturing[-1]
        made.shape = (block.shape[1], width)
        made.logits = torch.zeros(block.shape[1], decoder.config.vocab_size, dtype=decoder.dtype)
        enabled = {projection: projection.lora_enabled for projection in projections(decoder).values()}

        def again() -> Tensor:  # a graph repeats the branches that were taken when it was captured
            for projection, was in enabled.items():
                projection.lora_enabled = was
            return compute(decoder, cache, block, width)

        made.compute = again
        return made.logits

    patch.setattr(decode_step, "compute", computed)
    patch.setattr(pool, "choose_steps", decode_step.CapturedSteps)
    patch.setattr(torch.cuda, "CUDAGraph", DecodeGraph)
    patch.setattr(torch.cuda, "graph", graph)
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    patch.setattr(torch.cuda, "synchronize", lambda device: None)
    return made_graphs
