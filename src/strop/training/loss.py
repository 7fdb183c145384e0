"""What a step minimises: the mean -log p over all its learned tokens. And the error when that is not a number.

The decoder computes the sum of -log p over a microbatch's labels (`ops.linear_cross_entropy`); what it is worth in the
step's loss is decided here.
"""

from collections.abc import Sequence

from strop.data.store import SampleStore
from strop.errors import NumericsError


def token_weight(num_loss_tokens: int) -> float:
    """The factor on -log p of each of a step's learned tokens, which makes their sum the mean.

    It is the same for every microbatch on every rank, so how samples fall into microbatches, and those onto ranks,
    changes nothing but rounding.

    Args:
        num_loss_tokens: Of the whole step, on all ranks.
    """
    return 1.0 / num_loss_tokens


class NonFiniteError(NumericsError):
    """A loss or gradient of this step is not finite; `samples` are the store's indices it was computed from."""

    def __init__(self, what: str, samples: tuple[int, ...]) -> None:
        super().__init__(what)
        self.samples = samples

    def __reduce__(self) -> tuple[type["NonFiniteError"], tuple[str, tuple[int, ...]]]:
        """Other ranks are told of it."""
        return NonFiniteError, (str(self), self.samples)


def refuse_non_finite(losses: Sequence[float], grad_norm: float, samples: Sequence[tuple[int, ...]]) -> None:
    """Check a step's numbers.

    Args:
        losses: Each microbatch's part of the loss, on all ranks.
        grad_norm: Of the whole gradient.
        samples: Of each microbatch, their indices in the store.

    Raises:
        NonFiniteError: One of them is infinite or not a number.
    """
    for loss, indices in zip(losses, samples, strict=True):
        if not is_finite(loss):
            raise NonFiniteError(f"the loss is {loss}", indices)
    if not is_finite(grad_norm):
        raise NonFiniteError(f"the gradient norm is {grad_norm}", tuple(index for each in samples for index in each))


def explain_non_finite(step: int, error: NonFiniteError, store: SampleStore) -> str:
    """The message for the user about a step that failed, counted from 1."""
    rows = ", ".join(str(store.origin(i)) for i in error.samples[:16])
    more = f" and {len(error.samples) - 16} more" if len(error.samples) > 16 else ""
    return (
        f"step {step}: {error}. Nothing was updated. It came from these rows: {rows}{more}. "
        "Check them first; if they are fine, lower train.learning_rate or set train.max_grad_norm."
    )


def is_finite(number: float) -> bool:
    """Whether a number is one, and not infinite."""
    return abs(number) < float("inf")
