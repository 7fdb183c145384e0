"""Waiting for what has to happen, however busy the machine is: for a condition, never for a time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from strop.run.records import read_metrics

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds after which it is a failure. Nothing here takes a tenth of that on two idle cores."""


def until(condition: Callable[[], T], what: Callable[[], str] = lambda: "", pause: float = 0.005) -> T:
    """Wait until a condition holds.

    Args:
        condition: Asked again and again.
        what: Says more where it did not come to hold.
        pause: Seconds between two looks.

    Returns:
        What the condition gave, which counts as true.
    """
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"it did not happen in {PATIENCE:g} s\n{what()}"
        time.sleep(pause)
    return found


def until_step(run: Path, step: int = 1, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a run has recorded a step; its process must not end before."""

    def is_made() -> bool:
        alive = is_alive()  # before looking: what a process wrote last counts
        path = run / "metrics.jsonl"
        made = path.exists() and any(record.step >= step for record in read_metrics(path))
        assert made or alive, f"it ended before step {step}"
        return made

    until(is_made)
