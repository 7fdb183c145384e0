"""What a step minimises: the mean -log p over all its learned tokens. And the error when that is not a number.

The decoder computes the sum of -log p over a microbatch's labels (`ops.linear_cross_entropy`); what it is worth in the
step's loss is decided here.
"""

from collections.abc import Sequence

from strop.data.store import SampleStore
from strop.errors import NumericsError
from strop.microbatch.pack import Microbatch


def token_weight(microbatches: Sequence[Microbatch]) -> float:
    """The factor on -log p of each of a step's learned tokens, which makes their sum the mean.

    It is the same for every microbatch, so how samples fall into microbatches changes nothing but rounding.
    """
    return 1.0 / sum(microbatch.num_loss_tokens for microbatch in microbatches)


class NonFiniteError(NumericsError):
    """A loss or gradient of this step is not finite; `samples` are the store's indices it was computed from."""

    def __init__(self, what: str, samples: tuple[int, ...]) -> None:
        super().__init__(what)
        self.samples = samples


def refuse_non_finite(losses: Sequence[float], grad_norm: float, microbatches: Sequence[Microbatch]) -> None:
    """Check a step's numbers.

    Args:
        losses: Each microbatch's part of the loss.
        grad_norm: Of the whole gradient.
        microbatches: All of the step's.

    Raises:
        NonFiniteError: One of them is infinite or not a number.
    """
    for loss, microbatch in zip(losses, microbatches, strict=True):
        if not _is_finite(loss):
            raise NonFiniteError(f"the loss is {loss}", microbatch.samples)
    if not _is_finite(grad_norm):
        samples = tuple(index for microbatch in microbatches for index in microbatch.samples)
        raise NonFiniteError(f"the gradient norm is {grad_norm}", samples)


def explain_non_finite(step: int, error: NonFiniteError, store: SampleStore) -> str:
    """The message for the user about a step that failed, counted from 1."""
    rows = ", ".join(str(store.origin(i)) for i in error.samples[:16])
    more = f" and {len(error.samples) - 16} more" if len(error.samples) > 16 else ""
    return (
        f"step {step}: {error}. Nothing was updated. It came from these rows: {rows}{more}. "
        "Check them first; if they are fine, lower train.learning_rate or set train.max_grad_norm."
    )


def _is_finite(number: float) -> bool:
    return abs(number) < float("inf")
