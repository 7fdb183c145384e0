"""Two ways to compute gradients: autograd on the plain decoder (any device), or the fused decoder as CUDA graphs."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from strop.microbatch.pack import Microbatch, PackedInputs
from strop.model.lora import LoraAdapter
from strop.model.precision import why_not_fused


class Gradients(Protocol):
    """Computes an adapter's losses and their gradients.

    Attributes:
        device: Where they are computed.
    """

    device: torch.device

    def of(
        self, microbatches: Sequence[Microbatch], scale: float, check_stop: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """A rank's part of a step's loss, `scale` times the sum of -log p over its learned tokens, and its gradient.

        Does not wait for a GPU.

        Args:
            microbatches: This rank's, perhaps none.
            scale: Factor on -log p of each learned token.
            check_stop: Called before each; may raise to abandon the step.

        Returns:
            Each microbatch's part of the loss, (microbatches,), and the gradient in the order of `LoraAdapter.flat`.
            The gradient is valid until the next call; the caller may overwrite it.
        """

    def nll_of(self, microbatch: Microbatch) -> Tensor:
        """The sum of -log p over a microbatch's learned tokens, a scalar on the device."""

    def release(self) -> None:
        """Free all memory that only serves to make the next microbatch faster."""


class PlainGradients:
    """Autograd on the plain decoder; it accumulates into the adapter's own buffer."""

    def __init__(self, adapter: LoraAdapter) -> None:
        self._decoder, self._grad = adapter.decoder, adapter.flat_grad
        self.device = adapter.decoder.device

    def of(
        self, microbatches: Sequence[Microbatch], scale: float, check_stop: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """See `Gradients`."""
        self._grad.zero_()
        losses = []
        for microbatch in microbatches:
            check_stop()
            losses.append(self._add(microbatch, scale))
        return torch.stack(losses) if losses else self._grad.new_zeros(0), self._grad

    def nll_of(self, microbatch: Microbatch) -> Tensor:
        """See `Gradients`."""
        return self._decoder.nll_sum(PackedInputs.of(microbatch, self.device))

    def release(self) -> None:
        """See `Gradients`."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _add(self, microbatch: Microbatch, scale: float) -> Tensor:
        """Add a microbatch's gradient to the sum and return its part of the loss."""
        loss = self.nll_of(microbatch) * scale
        loss.backward()
        return loss.detach()


def why_plain(adapter: LoraAdapter) -> str | None:
    """Why the fused layers cannot train this adapter; None if they can."""
    decoder = adapter.decoder
    if reason := why_not_fused(decoder.config, adapter.section, decoder.device):
        return reason
    return None if decoder.dtype == torch.bfloat16 else f"activations are {decoder.dtype}"


def choose_gradients(adapter: LoraAdapter) -> Gradients:
    """The fused layers if they apply, else the plain decoder."""
    if why_plain(adapter):
        return PlainGradients(adapter)
    from strop.fused.capture import CapturedGradients  # its kernels need Triton, which torch's CPU builds lack

    return CapturedGradients(adapter)
