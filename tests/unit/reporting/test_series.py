import json
import math

import numpy as np
import pytest

from strop.reporting.series import MOST_POINTS, Series, read_columns, smoothed, thinned, window_of


def line(step: object, loss: object = 1.0, kind: object = "train") -> bytes:
    return json.dumps({"kind": kind, "step": step, "loss": loss}).encode()


def of(*values: float) -> Series:
    return Series(np.arange(len(values), dtype=float), np.array(values, dtype=float))


def test_columns_keep_what_is_sound_and_count_what_is_not() -> None:
    bad = [b"{", b"[1]", b"\xff", b"null", line(True), line(-1), line(2**60), line("3"), line(1.5), line(1, kind=[])]
    columns = read_columns([line(1, 3.0), *bad, b"\n", line(2, None), line(3, math.nan), line(4, 10**400)])
    assert columns.bad_lines == len(bad)
    series = columns.series("train", "loss")
    assert series.steps.tolist() == [1, 3, 4]
    assert series.finite.steps.tolist() == [1]
    assert len(columns.series("train", "nothing")) == 0


def test_of_a_step_that_is_there_twice_the_last_counts() -> None:
    series = read_columns([line(1, 1.0), line(3, 3.0), line(2, 2.0), line(3, 4.0)]).series("train", "loss")
    assert (series.steps.tolist(), series.values.tolist()) == ([1, 2, 3], [1.0, 2.0, 4.0])


@pytest.mark.parametrize(("count", "window"), [(0, 1), (100, 1), (149, 1), (150, 3), (1000, 21), (3000, 61)])
def test_the_window_is_odd_and_a_fiftieth(count: int, window: int) -> None:
    assert window_of(count) == window


def test_smoothing_is_the_mean_around_each_step() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    means, window = smoothed(of(*noise))
    assert window == 9
    expected = [noise[max(0, i - 4) : i + 5].mean() for i in range(400)]
    np.testing.assert_allclose(means.values, expected, atol=1e-12)
    assert np.abs(means.values[1:] - noise[:-1]).max() > 0.1  # and not just the values


def test_few_steps_are_not_smoothed() -> None:
    means, window = smoothed(of(1.0, math.nan, 3.0))
    assert (window, means.values.tolist()) == (1, [1.0, 3.0])


def test_thinning_loses_no_spike() -> None:
    values = np.zeros(100_000)
    values[[5, 70_001]] = 9.0, -9.0
    few = thinned(of(*values))
    assert len(few) <= MOST_POINTS + 2
    assert {5.0, 70_001.0} <= set(few.steps.tolist())
    assert few.steps[[0, -1]].tolist() == [0, 99_999]
    assert (np.diff(few.steps) > 0).all()


def test_the_spread_between_ranks_is_two_figures() -> None:
    lines = [
        b'{"kind": "train", "step": 1, "rank_seconds": [0.3, 0.1, 0.2]}',
        b'{"kind": "train", "step": 2}',
        b'{"kind": "train", "step": 3, "rank_seconds": [0.5]}',
        b'{"kind": "train", "step": 4, "rank_seconds": []}',
        b'{"kind": "train", "step": 5, "rank_seconds": ["a"]}',
        b'{"kind": "eval", "step": 5, "rank_seconds": [1.0]}',
    ]
    columns = read_columns(lines)
    slowest, fastest = (columns.series("train", f"{name}_rank") for name in ("slowest", "fastest"))
    assert (slowest.steps.tolist(), slowest.values.tolist()) == ([1, 3], [0.3, 0.5])
    assert (fastest.steps.tolist(), fastest.values.tolist()) == ([1, 3], [0.1, 0.5])
