"""Capturing CUDA graphs, without what a garbage collection would do in the middle of it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Within its context, launches are captured into `graph`, with memory from `pool`.

    Python's collector is off meanwhile. An older graph in a reference cycle that it frees during a capture ends that
    capture ("operation not permitted when stream is capturing"); seen in 2 to 3 of 107 tests on an H200.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool):
            yield
    finally:
        if collects:
            gc.enable()
