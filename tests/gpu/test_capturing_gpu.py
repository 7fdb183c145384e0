"""A capture is not ended by an older graph that Python's collector frees meanwhile."""

import gc
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from strop.ops.capturing import capturing

pytestmark = pytest.mark.gpu


def a_graph_in_a_cycle() -> None:
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros(1000, device="cuda")
    with torch.cuda.graph(graph):
        y = x + 1
    cycle: dict[str, Any] = {"graph": graph, "y": y}
    cycle["cycle"] = cycle


def captured(capture: AbstractContextManager[None], graph: torch.cuda.CUDAGraph) -> torch.Tensor:
    """What a graph computes that is captured while Python makes enough objects for a collection."""
    x = torch.zeros(1000, device="cuda")
    torch.cuda.synchronize()
    with capture:
        y = x + 1
        _ = [[i] for i in range(1_000_000)]
        z = y * 2
    graph.replay()
    return z


def test_a_collection_does_not_end_a_capture() -> None:
    gc.collect()
    a_graph_in_a_cycle()
    graph = torch.cuda.CUDAGraph()
    z = captured(capturing(graph, torch.cuda.graph_pool_handle()), graph)
    assert z.eq(2).all()
    assert gc.isenabled()
