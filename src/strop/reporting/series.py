"""metrics.jsonl as columns, and columns as few enough points for a page."""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_POINTS = 1000
"""Of a line: more than a wide screen has pixels for a chart."""

_LARGEST_STEP = 2**53
"""What JavaScript can count to."""


@dataclass(frozen=True)
class Series:
    """One figure over the steps, in ascending steps without repetition; a value may be NaN.

    Attributes:
        steps: (N,), whole numbers.
        values: (N,).
    """

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> "Series":
        """Without what is not a number."""
        sound = np.isfinite(self.values)
        return Series(self.steps[sound], self.values[sound])


@dataclass
class Columns:
    """All figures of a metrics file by kind of record (`train`, `eval`) and name.

    Attributes:
        bad_lines: Lines that are no record. One at the end is a line that is being written.
    """

    bad_lines: int = 0
    _found: "dict[tuple[str, str], tuple[array[float], array[float]]]" = field(default_factory=dict)

    def add(self, line: bytes) -> None:
        """Take in one line; it may be anything."""
        try:
            record = json.loads(line)
            kind, step = record["kind"], record["step"]
        except (ValueError, RecursionError, KeyError, TypeError):
            self.bad_lines += 1
            return
        if type(step) is not int or not 0 <= step < _LARGEST_STEP or not isinstance(kind, str):
            self.bad_lines += 1
            return
        for name, value in record.items():
            if name != "step" and type(value) in (int, float):
                self._append(kind, name, step, value)

    def _append(self, kind: str, name: str, step: int, value: float) -> None:
        steps, values = self._found.setdefault((kind, name), (array("d"), array("d")))
        try:
            values.append(value)
        except OverflowError:  # an integer beyond a double's range
            values.append(float("inf"))
        steps.append(step)

    def series(self, kind: str, name: str) -> Series:
        """One figure; empty where the file has none. Of a step that is there twice the last one counts."""
        steps, values = (np.array(part, dtype=np.float64) for part in self._found.get((kind, name), ((), ())))
        if len(steps) and (np.diff(steps) <= 0).any():
            order = np.argsort(steps, kind="stable")
            steps, values = steps[order], values[order]
            last = np.append(steps[1:] != steps[:-1], True)
            steps, values = steps[last], values[last]
        return Series(steps, values)


def read_columns(lines: Iterable[bytes]) -> Columns:
    """The columns of a metrics file, read line by line so that a million steps take no million objects."""
    columns = Columns()
    for line in lines:
        if line.strip():
            columns.add(line)
    return columns


def window_of(count: int) -> int:
    """Values that a smoothed line averages at each step: an odd number near a fiftieth of all; 1 is no smoothing."""
    wanted = count // 50
    return 1 if wanted < 3 else wanted | 1


def smoothed(series: Series) -> tuple[Series, int]:
    """The mean of the values around each, and how many those are; fewer at either end, never an extrapolation."""
    sound = series.finite
    window = window_of(len(sound))
    if window == 1:
        return sound, 1
    half = window // 2
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.concatenate(([0.0], np.cumsum(sound.values)))
        index = np.arange(len(sound))
        first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(sound))
        means = (sums[last] - sums[first]) / (last - first)
    return Series(sound.steps, means).finite, window


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points: of each stretch of steps its lowest and its highest value, so that no spike is lost."""
    sound = series.finite
    if len(sound) <= most:
        return sound
    edges = np.linspace(0, len(sound), most // 2 + 1).astype(int)
    kept = {0, len(sound) - 1}
    for first, last in pairwise(edges):
        part = sound.values[first:last]
        kept |= {first + int(part.argmin()), first + int(part.argmax())}
    index = np.array(sorted(kept))
    return Series(sound.steps[index], sound.values[index])
