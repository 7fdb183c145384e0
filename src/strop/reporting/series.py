"""metrics.jsonl as columns of `run.records`, and columns as few enough points for a page."""

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strop.run.records import EvalRecord, TrainRecord

Floats = NDArray[np.float64]

MOST_POINTS = 1000
"""Of a line: more than a wide screen has pixels for a chart."""

_LARGEST = 1.7e308
"""A double; JSON knows larger integers."""

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


_FIGURES = {
    kind.kind: [figure.name for figure in fields(kind) if figure.name != "step"] for kind in (TrainRecord, EvalRecord)
}
"""What each kind of record has."""

_LINES_AT_A_TIME = 4096
"""Parsed as one list: a sixth of the time of parsing each."""


@dataclass
class Columns:
    """All figures of a metrics file by kind of record and name.

    Attributes:
        bad_lines: Lines that are no record. One at the end is a line that is being written.
    """

    bad_lines: int = 0
    _found: "dict[tuple[str, str], tuple[array[float], array[float]]]" = field(default_factory=dict)

    def add(self, lines: Sequence[bytes]) -> None:
        """Take in some lines; they may be anything."""
        records = [record for record in _parsed(lines) if _is_record(record)]
        self.bad_lines += len(lines) - len(records)
        for kind, names in _FIGURES.items():
            of_kind = [record for record in records if record["kind"] == kind]
            for name in names:
                self._append((kind, name), [each["step"] for each in of_kind], [each.get(name) for each in of_kind])
        parts = [record for record in records if _is_divided(record)]
        for name, of in (("slowest_rank", max), ("fastest_rank", min)):
            values = [of(record["rank_seconds"]) for record in parts]
            self._append(("train", name), [record["step"] for record in parts], values)

    def _append(self, key: tuple[str, str], steps: list[int], values: list[Any]) -> None:
        known_steps, known = self._found.setdefault(key, (array("d"), array("d")))
        try:
            numbers = array("d", values)
        except (TypeError, OverflowError):  # some have no such figure, or one that is no double
            kept = [(step, value) for step, value in zip(steps, values, strict=True) if type(value) in (float, int)]
            steps = [step for step, _ in kept]
            numbers = array("d", [value if abs(value) < _LARGEST or value != value else math.inf for _, value in kept])
        known_steps.extend(array("d", steps))
        known.extend(numbers)

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
    """The columns of a metrics file, read in pieces so that a million steps take no million objects."""
    columns = Columns()
    full = (line for line in lines if line.strip())
    while part := list(islice(full, _LINES_AT_A_TIME)):
        columns.add(part)
    return columns


def _parsed(lines: Sequence[bytes]) -> list[Any]:
    """What each line holds, None for what is not JSON."""
    with suppress(ValueError, RecursionError):
        found: list[Any] = json.loads(b"[%s]" % b",".join(lines))
        if len(found) == len(lines):
            return found
    return [_parsed_line(line) for line in lines]


def _parsed_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_record(record: Any) -> bool:
    if type(record) is not dict or type(record.get("kind")) is not str:
        return False
    step = record.get("step")
    return type(step) is int and 0 <= step < _LARGEST_STEP


def _is_divided(record: Any) -> bool:
    """Whether several ranks made this step."""
    found = record.get("rank_seconds")
    is_list = record["kind"] == "train" and type(found) is list and len(found) > 0
    return is_list and all(type(each) is float for each in found)


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
