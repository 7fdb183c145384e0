"""One optimizer step: microbatches -> gradients -> clip -> update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strop.data.pack import Batch
from strop.errors import NumericsError
from strop.model.decoder import Decoder
from strop.ops.attention import Packing
from strop.train.optim import FlatAdamW, clip_scale


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step measured.

    Attributes:
        loss: Mean -log p over the learned tokens of the whole step, before the update.
        grad_norm: L2 norm of the gradient before clipping.
        num_samples: Samples in the step.
        num_tokens: Tokens computed.
        num_loss_tokens: Tokens learned.
    """

    loss: float
    grad_norm: float
    num_samples: int
    num_tokens: int
    num_loss_tokens: int


class NonFiniteError(NumericsError):
    """A loss or gradient of this step is not finite; `samples` are the store's indices that made it."""

    def __init__(self, what: str, samples: tuple[int, ...]) -> None:
        super().__init__(what)
        self.samples = samples


def nll_sum(decoder: Decoder, batch: Batch) -> Tensor:
    """Sum of -log p over the learned tokens of a microbatch."""
    device = decoder.device
    ids, learned, labels = (torch.from_numpy(x).to(device) for x in (batch.input_ids, batch.learned, batch.labels))
    return decoder.nll_sum(ids, Packing.of(batch.lengths, device), learned, labels)


def train_step(
    decoder: Decoder,
    optimizer: FlatAdamW,
    batches: Sequence[Batch],
    learning_rate: float,
    max_grad_norm: float,
    check_stop: Callable[[], None] = lambda: None,
) -> StepResult:
    """Update the adapter once.

    The loss is the sum over all microbatches divided by the learned tokens of all of them, so how samples fall into
    microbatches changes nothing but rounding.

    `check_stop` is called before each microbatch and may raise to abandon the step.

    Raises:
        NonFiniteError: Before the update; the adapter and the optimizer are as the last step left them.
    """
    num_loss_tokens = sum(batch.num_loss_tokens for batch in batches)
    optimizer.zero_grad()
    loss = 0.0
    for batch in batches:
        check_stop()
        mean_nll = nll_sum(decoder, batch) / num_loss_tokens
        mean_nll.backward()
        if not torch.isfinite(mean_nll):
            raise NonFiniteError(f"the loss is {mean_nll.item()}", batch.samples)
        loss += mean_nll.item()

    grad_norm = optimizer.grad_norm()
    if not torch.isfinite(grad_norm):
        samples = tuple(index for batch in batches for index in batch.samples)
        raise NonFiniteError(f"the gradient norm is {grad_norm.item()}", samples)
    optimizer.step(learning_rate, clip_scale(grad_norm, max_grad_norm))
    return StepResult(
        loss=loss,
        grad_norm=grad_norm.item(),
        num_samples=sum(len(batch.lengths) for batch in batches),
        num_tokens=sum(len(batch.input_ids) for batch in batches),
        num_loss_tokens=num_loss_tokens,
    )
