"""How gradients come about: the plain decoder through autograd, anywhere; the fused one, captured, on a GPU."""

from typing import Protocol

import torch
from torch import Tensor

from strop.microbatch.inputs import HostBatch, PackedInputs
from strop.model.lora import LoraAdapter
from strop.model.precision import why_not_fused


class Gradients(Protocol):
    """Adds the gradients of a step's microbatches up for the optimizer.

    Attributes:
        device: Where they are computed.
    """

    device: torch.device

    def zero(self) -> None:
        """Forget the gradients of the last step."""

    def add(self, batch: HostBatch, scale: float) -> Tensor:
        """Add the gradient of scale * nll, and return that product, a scalar on the model's device."""

    def collect(self) -> None:
        """Hand the sum to the optimizer."""

    def refresh(self) -> None:
        """Take over the updated parameters."""

    def nll_of(self, batch: HostBatch) -> Tensor:
        """The sum of -log p over a microbatch's learned tokens, without gradients."""

    def release(self) -> None:
        """Give back all memory that only makes the next microbatch faster."""


class PlainGradients:
    """Autograd on the plain decoder; the parameters' gradients are views of the optimizer's buffer."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self._adapter, self._decoder = adapter, adapter.decoder
        self.device = adapter.decoder.device

    def zero(self) -> None:
        """See `Gradients`."""
        self._adapter.flat_grad.zero_()

    def add(self, batch: HostBatch, scale: float) -> Tensor:
        """See `Gradients`."""
        nll = self.nll_of(batch) * scale
        nll.backward()
        return nll.detach()

    def collect(self) -> None:
        """The buffer is the optimizer's already."""

    def refresh(self) -> None:
        """The parameters are the optimizer's own."""

    def nll_of(self, batch: HostBatch) -> Tensor:
        """See `Gradients`."""
        return self._decoder.nll_sum(PackedInputs.of(batch, self._decoder.device))

    def release(self) -> None:
        """See `Gradients`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def why_plain(adapter: LoraAdapter) -> str | None:
    """What keeps an adapter from being trained by the fused layers, if anything does."""
    decoder = adapter.decoder
    if reason := why_not_fused(decoder.config, adapter.section, decoder.device):
        return reason
    return None if decoder.dtype == torch.bfloat16 else f"activations are {decoder.dtype}"


def choose_gradients(adapter: LoraAdapter) -> Gradients:
    """The fused layers where they apply, else the plain decoder."""
    if why_plain(adapter):
        return PlainGradients(adapter)
    from strop.fused.capture import CapturedGradients  # its kernels need Triton, which torch's CPU builds lack

    return CapturedGradients(adapter)
