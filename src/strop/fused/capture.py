"""A microbatch's forward and backward as a CUDA graph, one for each shape that occurs more than once.

A step of eight short samples takes 25 ms of kernels but, launched one by one, 100 ms of Python. So each microbatch is
padded to the next of a few capacities. The first of a capacity runs eagerly, which also compiles its kernels; the
second is captured, and from then on the graph is replayed. Inputs go to the GPU as one block; results stay there.
Graph and eager run launch the same kernels on the same shapes, so their results are identical to the bit. A large
microbatch keeps the GPU busy for longer than its launches take, so it is not captured, and padded to whole tiles only.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.fused.decoder import FusedDecoder
from strop.fused.inputs import Capacity, lay_out, most_captured_tokens, read_inputs
from strop.microbatch.pack import Microbatch
from strop.model.lora import LoraAdapter
from strop.ops.capturing import capturing

_MAX_GRAPHS = 32
"""Graphs kept; the least recently used is dropped first. Each takes about 20 MiB, and all share the memory for their
tensors."""


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    block: Tensor
    nll: Tensor


class CapturedGradients:
    """The gradients of `training.gradients.Gradients`, computed on the GPU without waiting for it."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self._model = FusedDecoder(adapter)
        self.device = adapter.decoder.device
        self._max_tokens = most_captured_tokens(adapter.decoder.num_base_parameters)
        self._scale = torch.zeros((), device=self.device)
        self._seen: set[Capacity] = set()
        self._graphs: OrderedDict[Capacity, _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def of(
        self, microbatches: Sequence[Microbatch], scale: float, check_stop: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """See `Gradients`. The gradient is allocated once activations are freed, which saves 4 bytes a parameter."""
        work = self._model.work
        work.refresh()
        work.zero()
        self._scale.fill_(scale)
        losses = []
        for microbatch in microbatches:
            check_stop()
            losses.append(self._add(microbatch))
        grad = work.collect()
        return torch.stack(losses) if losses else grad.new_zeros(0), grad

    def nll_of(self, microbatch: Microbatch) -> Tensor:
        """See `Gradients`."""
        self._model.work.refresh()
        with torch.no_grad():
            return self._model.nll_sum(self._model.inputs_of(microbatch))

    def release(self) -> None:
        """See `Gradients`: frees every graph and their pool. Shapes that occur again are captured again."""
        self._graphs.clear()
        self._seen.clear()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        self._pool = torch.cuda.graph_pool_handle()

    def _add(self, microbatch: Microbatch) -> Tensor:
        """Add a microbatch's gradient to the sum and return its part of the loss."""
        launch_bound = microbatch.num_tokens <= self._max_tokens
        block, capacity = lay_out(microbatch, "graph" if launch_bound else "tiles")
        block = block.pin_memory() if self.device.type == "cuda" else block
        if not launch_bound or capacity not in self._seen:
            self._seen.add(capacity)
            return self._compute(block.to(self.device, non_blocking=True), capacity)
        if capacity not in self._graphs:
            self._graphs[capacity] = self._capture(block, capacity)
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(capacity)
        captured = self._graphs[capacity]
        captured.block.copy_(block, non_blocking=True)
        captured.graph.replay()
        return captured.nll.clone()

    def _compute(self, block: Tensor, capacity: Capacity) -> Tensor:
        nll = self._model.nll_sum(read_inputs(block, capacity)) * self._scale
        nll.backward()
        return nll.detach()

    def _capture(self, example: Tensor, capacity: Capacity) -> _Graph:
        block = example.to(self.device)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # the graphs' own pool needs the memory that eager runs have cached
        graph = torch.cuda.CUDAGraph()
        try:
            with capturing(graph, self._pool):
                nll = self._compute(block, capacity)
        except RuntimeError as error:
            # Leaving a failed capture can itself raise, which would hide the original error.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        return _Graph(graph, block, nll)
