"""A microbatch's forward and backward as a CUDA graph, one for each shape that comes up more than once.

A step of eight short samples is 25 ms of kernels and, launched one by one, 100 ms of Python. So a microbatch is padded
to the next of a few capacities and the first of a capacity runs as it is, which also compiles its kernels; the second
is captured, and from then on the graph is replayed. Inputs go to the GPU as one block, results stay there. Graph and
eager run are the same kernels on the same shapes: their results are the same bits. A large microbatch keeps the GPU
busy for longer than its launches take, and is neither captured nor padded beyond whole tiles.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.fused.decoder import FusedDecoder
from strop.fused.inputs import Capacity, InputBlock, read_inputs
from strop.microbatch.inputs import HostBatch
from strop.model.lora import LoraAdapter
from strop.training.budget import most_captured_tokens

_MAX_GRAPHS = 32
"""Graphs kept; the one that was used longest ago goes first. Each takes some 20 MiB, and memory for its tensors is
shared by all."""


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    block: Tensor
    nll: Tensor


class CapturedGradients:
    """Adds the gradients of microbatches up, on the GPU and without waiting for it."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self._model, self._adapter = FusedDecoder(adapter), adapter
        adapter.lend_gradients(False)
        self.device = adapter.decoder.device
        self._max_tokens = most_captured_tokens(adapter.decoder.num_base_parameters)
        self._scale = torch.zeros((), device=self.device)
        self._seen: set[Capacity] = set()
        self._graphs: OrderedDict[Capacity, _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self._model.work.grad.zero_()

    def add(self, batch: HostBatch, scale: float) -> Tensor:
        """Add the gradient of scale * nll, and return that product, a scalar on the GPU."""
        launch_bound = len(batch.input_ids) <= self._max_tokens
        host = InputBlock.of(batch, "graph" if launch_bound else "tiles")
        numbers, capacity = host.host_tensor(self.device), host.capacity
        self._scale.fill_(scale)
        if not launch_bound or capacity not in self._seen:
            self._seen.add(capacity)
            return self._compute(numbers.to(self.device, non_blocking=True), capacity)
        if capacity not in self._graphs:
            self._graphs[capacity] = self._capture(numbers, capacity)
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(capacity)
        captured = self._graphs[capacity]
        captured.block.copy_(numbers, non_blocking=True)
        captured.graph.replay()
        return captured.nll.clone()

    def collect(self) -> None:
        """Hand the sum to the optimizer."""
        self._adapter.lend_gradients(True)
        self._model.work.collect()

    def refresh(self) -> None:
        """Take over the updated parameters."""
        self._adapter.lend_gradients(False)
        self._model.work.refresh()

    def nll_of(self, batch: HostBatch) -> Tensor:
        """The sum of -log p over a microbatch's learned tokens, without gradients."""
        with torch.no_grad():
            return self._model.nll_sum(self._model.inputs_of(batch))

    def release(self) -> None:
        """Drop every graph and their pool; shapes that come again are captured anew."""
        self._graphs.clear()
        self._seen.clear()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        self._pool = torch.cuda.graph_pool_handle()

    def _compute(self, block: Tensor, capacity: Capacity) -> Tensor:
        nll = self._model.nll_sum(read_inputs(block, capacity)) * self._scale
        nll.backward()
        return nll.detach()

    def _capture(self, numbers: Tensor, capacity: Capacity) -> _Graph:
        block = numbers.to(self.device)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what eager runs left behind is needed for the graphs' own pool
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                nll = self._compute(block, capacity)
        except RuntimeError as error:
            # Leaving a capture that failed can fail by itself, and hide what it failed of.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        return _Graph(graph, block, nll)
