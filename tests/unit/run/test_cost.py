"""Dollars of all attempts, and the limit at which a run has to end."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from strop.errors import BudgetReached
from strop.run.cost import Meter, enter_cost, with_unfinished
from strop.run.folder import RunFolder
from strop.run.manifest import AttemptCost


def meter(seconds: float, **fields: object) -> Meter:
    return Meter("H200", 0.01, 1000.0, now=lambda: 1000.0 + seconds, **fields)  # type: ignore[arg-type]


EARLIER = (AttemptCost(1, "H100", "1970-01-01T00:00:00+00:00", 0.005, 100.0, 0.5),)


def test_all_attempts_count() -> None:
    now = meter(50.0, earlier=EARLIER)
    assert now.dollars == pytest.approx(1.0)
    assert now.entry(2) == AttemptCost(2, "H200", "1970-01-01T00:16:40+00:00", 0.01, 50.0, 0.5)
    assert meter(-5.0).dollars == 0.0  # clocks of two machines


def test_the_limit_leaves_room() -> None:
    meter(1e9).check()
    meter(50.0, limit=1.0).check(reserve=49.0)
    meter(99.5, limit=1.0).check()  # half a second is left, and no more is asked for
    with pytest.raises(BudgetReached, match=r"modal\.max_cost=1: \$0\.50 so far") as caught:
        meter(50.0, limit=1.0).check(reserve=50.0)
    assert caught.value.exit_code == 7
    with pytest.raises(BudgetReached):
        meter(50.0, earlier=EARLIER, limit=1.0).check()


def test_an_attempt_that_was_killed_counts_up_to_its_last_step() -> None:
    assert with_unfinished(EARLIER, 0.75) == (replace(EARLIER[0], dollars=0.75, seconds=150.0),)
    assert with_unfinished(EARLIER, 0.2) == EARLIER
    assert with_unfinished((), 0.0) == with_unfinished((), 0.3) == ()
    second = AttemptCost(2, "H200", "1970-01-01T01:00:00+00:00", 0.01, 30.0, 0.3)
    assert with_unfinished((*EARLIER, second), 1.0) == (*EARLIER, replace(second, dollars=0.5, seconds=50.0))
    assert with_unfinished((*EARLIER, second), 0.8) == (*EARLIER, second)


def test_the_clock_is_read_each_time(tmp_path: Path) -> None:
    ticks = itertools.count(1000.0, 10.0)
    running = Meter("H200", 0.01, 1000.0, now=lambda: next(ticks))
    assert [running.dollars, running.dollars] == [pytest.approx(0.0), pytest.approx(0.1)]


def test_the_manifest_lists_every_attempt(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update(lambda manifest: replace(manifest, attempts=2, costs=EARLIER))
    enter_cost(folder, meter(50.0, earlier=EARLIER))
    assert folder.begun.costs == (*EARLIER, meter(50.0).entry(2))
    assert folder.begun.dollars == 1.0
    before = folder.begun
    enter_cost(folder, None)
    assert folder.begun == before
