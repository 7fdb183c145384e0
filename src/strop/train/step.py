"""One optimizer step: microbatches -> gradients -> clip -> update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from strop.data.pack import Batch
from strop.errors import NumericsError
from strop.model.decoder import Decoder
from strop.model.inputs import PackedInputs
from strop.train.optim import FlatAdamW, clip_scale


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step measured.

    Attributes:
        loss: Mean -log p over the learned tokens of the whole step, before the update.
        grad_norm: L2 norm of the gradient before clipping.
        num_samples: Samples in the step.
        num_tokens: Tokens of the samples.
        num_executed_tokens: Tokens computed: a prefix that samples of a microbatch share counts once.
        num_loss_tokens: Tokens learned.
    """

    loss: float
    grad_norm: float
    num_samples: int
    num_tokens: int
    num_executed_tokens: int
    num_loss_tokens: int


class NonFiniteError(NumericsError):
    """A loss or gradient of this step is not finite; `samples` are the store's indices that made it."""

    def __init__(self, what: str, samples: tuple[int, ...]) -> None:
        super().__init__(what)
        self.samples = samples


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
        mean_nll = decoder.nll_sum(PackedInputs.of(batch, decoder.device)) / num_loss_tokens
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
        num_samples=sum(len(batch.samples) for batch in batches),
        num_tokens=sum(batch.num_sample_tokens for batch in batches),
        num_executed_tokens=sum(len(batch.input_ids) for batch in batches),
        num_loss_tokens=num_loss_tokens,
    )
