"""`training.capture` where there is no GPU: a graph is the computation itself, done again at each replay.

What is emulated is CUDA's contract and no more: capturing computes nothing, and a replay reads the tensors that were
read while it was captured, whatever is in them by then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from strop.training.capture import CapturedGradients


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
