"""Falling losses give no warning; losses that do not fall, or that rise again, give one."""

import math
import random

import pytest

from strop.run.progress import LossWatch, coverage
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
