"""What each learned token is worth in a step's loss, and what is said of a step whose numbers are not finite."""

from types import SimpleNamespace

import numpy as np
import pytest

from strop.data.examples import Origin
from strop.data.store import Sample
from strop.microbatch.pack import Microbatch, pack
from strop.training.loss import NonFiniteError, explain_non_finite, refuse_non_finite, token_weight

NAN, INFINITE = float("nan"), float("inf")


def microbatches() -> list[Microbatch]:
    """Two, of samples 4, 7 and 9: with 1 + 2 and with 4 learned tokens."""
    learned = {4: [0, 0, 1], 7: [0, 1, 1], 9: [0, 1, 1, 1, 1]}
    samples = [
        Sample(np.arange(3 + i, 3 + i + len(row), dtype=np.int32), np.array(row, bool)) for i, row in learned.items()
    ]
    return pack(samples, list(learned), 6, share=False)


def test_all_tokens_of_a_step_weigh_one_together() -> None:
    step = microbatches()
    assert [batch.num_loss_tokens for batch in step] == [3, 4]
    assert 7 * token_weight(sum(batch.num_loss_tokens for batch in step)) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize(
    ("losses", "grad_norm", "samples", "said"),
    [
        ([0.5, NAN], 1.0, (9,), "the loss is nan"),
        ([INFINITE, NAN], NAN, (4, 7), "the loss is inf"),
        ([-INFINITE, 0.5], 1.0, (4, 7), "the loss is -inf"),
        ([0.5, 0.5], INFINITE, (4, 7, 9), "the gradient norm is inf"),
        ([0.5, 0.5], NAN, (4, 7, 9), "the gradient norm is nan"),
    ],
)
def test_a_number_that_is_not_finite_names_its_samples(
    losses: list[float], grad_norm: float, samples: tuple[int, ...], said: str
) -> None:
    with pytest.raises(NonFiniteError, match=said) as caught:
        refuse_non_finite(losses, grad_norm, [(4, 7), (9,)])
    assert caught.value.samples == samples


def test_finite_numbers_pass_and_a_missing_loss_does_not() -> None:
    refuse_non_finite([1e300, 0.0], 0.0, [(4, 7), (9,)])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        refuse_non_finite([0.5], 1.0, [(4, 7), (9,)])


@pytest.mark.parametrize(
    ("count", "named", "more"), [(1, 1, ""), (16, 16, ""), (17, 16, "and 1 more"), (40, 16, "and 24")]
)
def test_at_most_sixteen_rows_are_named(count: int, named: int, more: str) -> None:
    store = SimpleNamespace(origin=lambda index: Origin("rows.jsonl", index + 1))
    error = NonFiniteError("the loss is nan", tuple(range(count)))
    message = explain_non_finite(3, error, store)  # type: ignore[arg-type]
    assert message.startswith("step 3: the loss is nan.")
    assert message.count("rows.jsonl:") == named
    assert f"rows.jsonl:{named}" in message
    assert more in message if more else "more" not in message
