"""Which evaluations are a gain, and when one is due; losses that do not fall, or that rise again, give a warning."""

import math
import random

import pytest

from strop.recipe import TrainSection
from strop.run.progress import LossWatch, Progress, coverage
from strop.run.records import base_and_adapter


def warnings(losses: list[float]) -> list[tuple[int, str]]:
    watch = LossWatch()
    found = [(step, watch.see(loss)) for step, loss in enumerate(losses, 1)]
    return [(step, text) for step, text in found if text]


def noisy(losses: list[float]) -> list[float]:
    rng = random.Random(0)
    return [loss * rng.uniform(0.8, 1.2) for loss in losses]


@pytest.mark.parametrize("speed", [30, 300, 1000])
def test_a_falling_loss_gives_no_warning(speed: float) -> None:
    assert warnings(noisy([0.2 + 2 * math.exp(-step / speed) for step in range(600)])) == []


def test_a_level_loss_gives_one_warning() -> None:
    ((step, text),) = warnings(noisy([2.4] * 600))
    assert step == 125
    assert "has hardly fallen in 125 steps" in text


def test_a_loss_that_rises_again_gives_one_warning() -> None:
    falling = [0.2 + 2 * math.exp(-step / 30) for step in range(200)]
    ((step, text),) = warnings(noisy([*falling, *[1.5] * 200]))
    assert 200 < step <= 225
    assert "has risen" in text


def test_a_resumed_run_remembers_earlier_losses() -> None:
    losses = noisy([2.4] * 300)
    watch = LossWatch(losses[:110])
    assert sum(watch.see(loss) is not None for loss in losses[110:]) == 1
    assert all(LossWatch(losses[:130]).see(loss) is None for loss in losses[130:])


@pytest.mark.parametrize(
    ("steps", "each", "samples", "want"),
    [
        (3, 4, 2844, "12 of 2,844 samples"),
        (711, 4, 2844, "all 2,844 samples"),
        (9, 8, 3, "all 3 samples"),
        (2, 8, 1, "1 sample"),
    ],
)
def test_coverage(steps: int, each: int, samples: int, want: str) -> None:
    assert coverage(steps, each, samples) == want


@pytest.mark.parametrize(
    ("losses", "adapter_step", "want"),
    [
        ([], None, (None, None)),
        ([(0, 2.0)], None, (2.0, None)),
        ([(6, 1.0), (12, 1.5)], None, (None, 1.5)),
        ([(0, 2.0), (6, 1.0), (12, 1.5)], 6, (2.0, 1.0)),
        ([(0, 2.0), (6, 1.0), (12, 1.5)], 12, (2.0, 1.5)),
        ([(0, 2.0), (6, 1.0)], 9, (2.0, 1.0)),
    ],
)
def test_the_base_is_step_0_and_the_adapter_that_which_was_saved(
    losses: list[tuple[int, float]], adapter_step: int | None, want: tuple[float | None, float | None]
) -> None:
    assert base_and_adapter(losses, adapter_step) == want


@pytest.mark.parametrize(("later", "step"), [(1.51, 50), (1.49, None)])
def test_a_loss_half_as_high_again_as_the_lowest_has_risen(later: float, step: int | None) -> None:
    found = warnings([1.0] * 25 + [later] * 25)
    assert [at for at, text in found if "risen" in text] == ([step] if step else [])


@pytest.mark.parametrize(("later", "level"), [(0.94, True), (0.92, False)])
def test_a_loss_that_has_not_fallen_by_seven_percent_is_level(later: float, level: bool) -> None:
    assert bool(warnings([1.0] * 25 + [later] * 100)) is level
    assert not warnings([1.0] * 25 + [later] * 99)
    once_low = [1.0] * 25 + [later] * 50 + [0.9] * 25 + [later] * 25
    assert not warnings(once_low), "one window of the four is enough"


def evaluated(losses: list[float], **settings: object) -> tuple[Progress, list[bool]]:
    """The progress after an evaluation at each of the steps 1, 2, ..., and which of them were the lowest so far."""
    section, progress, lowest = TrainSection(**settings), Progress(), []  # type: ignore[arg-type]
    for loss in losses:
        progress.step += 1
        lowest.append(progress.record_eval(loss, section))
    return progress, lowest


def test_a_gain_that_equals_the_threshold_is_none() -> None:
    """As in transformers' EarlyStoppingCallback. Halves are exact in binary, so nothing is rounded."""
    settings = {"early_stopping_patience": 2, "early_stopping_threshold": 0.5}
    assert evaluated([4.0, 3.5], **settings)[0].evals_without_gain == 1
    assert evaluated([4.0, 3.5, 3.0], **settings)[0].stopped_early
    assert evaluated([4.0, 3.25], **settings)[0].evals_without_gain == 0
    assert evaluated([4.0, 3.25, 2.5, 1.75], **settings)[0].evals_without_gain == 0


def test_an_equal_loss_is_no_gain_without_a_threshold() -> None:
    progress, lowest = evaluated([4.0, 4.0, 4.0], early_stopping_patience=2)
    assert lowest == [True, False, False]
    assert progress.stopped_early
    assert progress.best_step == 1


def test_the_lowest_loss_is_the_best_however_small_its_gain() -> None:
    progress, lowest = evaluated([4.0, 3.75, 3.875], early_stopping_patience=3, early_stopping_threshold=0.5)
    assert lowest == [True, True, False]
    assert (progress.best_loss, progress.best_step) == (3.75, 2)
    assert progress.evals_without_gain == 2
    assert not progress.stopped_early


def test_small_gains_that_add_up_are_counted_from_the_lowest_loss() -> None:
    """Not from the last one that gained enough: two gains of 0.375 are none of more than 0.5."""
    progress, _ = evaluated([4.0, 3.625, 3.25], early_stopping_patience=2, early_stopping_threshold=0.5)
    assert progress.stopped_early


def test_without_patience_nothing_stops() -> None:
    progress, _ = evaluated([4.0] * 50)
    assert progress.evals_without_gain == 49
    assert not progress.stopped_early


def test_when_an_evaluation_is_due() -> None:
    def due(step: int, evaluated_step: int = -1, **settings: object) -> bool:
        progress = Progress(step=step, evaluated_step=evaluated_step)
        return progress.evaluation_is_due(TrainSection(**settings), 10)  # type: ignore[arg-type]

    assert [step for step in range(11) if due(step, eval_steps=4)] == [0, 4, 8, 10]
    assert [step for step in range(11) if due(step, eval_steps=0, eval_on_start=False)] == [10]
    assert [step for step in range(11) if due(step, eval_steps=0)] == [0, 10]
    assert [step for step in range(11) if due(step, eval_steps=5, eval_on_start=True)] == [0, 5, 10]
    assert [step for step in range(11) if due(step, eval_steps=5, eval_on_start=False)] == [5, 10]
    assert not due(4, evaluated_step=4, eval_steps=4)
    assert due(8, evaluated_step=4, eval_steps=4)
    assert not due(0, evaluated_step=0, eval_on_start=True)
