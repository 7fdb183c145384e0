"""What a recipe's list of files means: sources of rows, each with its files, its shape and how many of its rows.

Paths, globs, `package:` paths and hub ids come in a fixed order; rows that cannot be used come out as Faults, in order.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from strop.data.examples import Example, Fault, Origin, Row
from strop.data.files import Stretch, find, refuse_doubles
from strop.data.prompts import question_of
from strop.data.readers import read_rows
from strop.data.rows.columns import (
    PREFERENCE,
    Format,
    Shape,
    better_answer,
    describe_shapes,
    shape_chosen,
    shape_of,
)
from strop.data.rows.fields import RowError, is_empty
from strop.data.rows.shapes import RowReader
from strop.errors import DataError
from strop.readable import counted
from strop.recipe import DataFile, DataSection
from strop.recipe.wording import nearest

Note = Callable[[str], None]
_ROWS_LOOKED_AT = 100
_SPLIT = re.compile(r"(?P<name>[^\[\]]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that are read in one way.

    Attributes:
        name: As the recipe names it.
        files: In order.
        shape: Of its rows.
        part: Which of several lists in a file, such as a split.
        start: The first row that counts.
        stop: The first row that no longer counts; None if there is none.
        max_samples: How many good rows to keep, from the start; None keeps all.
        repeat: How often each sample is seen in an epoch; None where weights say.
        weight: Its share of an epoch relative to the other weights; None where `repeat` says.
    """

    name: str
    files: tuple[Path, ...]
    shape: Shape
    part: str | None = None
    start: int = 0
    stop: int | None = None
    max_samples: int | None = None
    repeat: float | None = None
    weight: float | None = None

    def reading(self) -> list[Any]:
        """What besides the files' content determines its examples."""
        columns = sorted(self.shape.columns.items())
        return [self.shape.format, columns, self.shape.chosen, self.part, self.start, self.stop, self.max_samples]

    def rows(self, note: Note = lambda line: None) -> Iterator[tuple[Origin, dict[str, Any]] | Fault]:
        """Its rows as they are in the files.

        Args:
            note: Told what is out of the ordinary in a file, such as another encoding: `FILE: phrase`.

        Raises:
            DataError: A file has no rows or cannot be read to its end.
        """
        return islice(_raw_rows(self.files, self.part, note), self.start, self.stop)


def open_sources(data: DataSection, specs: Sequence[str | DataFile], key: str = "data.train_file") -> list[Source]:
    """The sources of a recipe's list.

    Args:
        data: The recipe's section.
        specs: Its training or validation files.
        key: The recipe key they come from, for messages.

    Raises:
        DataError: A file is missing, unreadable, a folder, of an unknown type or listed twice; a glob matches nothing;
            rows have no known shape.
    """
    if not specs:
        raise DataError(f"{key} is empty: name at least one file, glob or hub id")
    entries = [DataFile(path=spec) if isinstance(spec, str) else spec for spec in specs]
    splits = [read_split(entry.split, key) for entry in entries]
    places = [(entry.path, name, entry.subset) for entry, (name, _, _) in zip(entries, splits, strict=True)]
    found = find(places, key)
    bounds = [_bounds(files, part, *ends) for (files, part), (_, *ends) in zip(found, splits, strict=True)]
    refuse_doubles(
        [Stretch(path, part, *ends) for (files, part), ends in zip(found, bounds, strict=True) for path in files], key
    )
    sources = []
    for entry, (files, part), (first, last) in zip(entries, found, bounds, strict=True):
        shape = _shape(entry, data, files, part)
        repeat = 1.0 if entry.repeat is None and entry.weight is None else entry.repeat
        sources.append(
            Source(
                entry.path if entry.split is None else f"{entry.path}:{entry.split}",
                tuple(files),
                shape,
                part,
                first,
                last,
                entry.max_samples,
                repeat,
                entry.weight,
            )
        )
    return sources


def read_split(split: str | None, key: str) -> tuple[str | None, str | None, str | None]:
    """The name of a split and the bounds of its rows, as written.

    Raises:
        DataError: It is written in another way.
    """
    match = _SPLIT.fullmatch(split or "")
    if not match:
        raise DataError(f"{key}: split={split} is not understood; write train, train[:1000] or train[10%:20%]")
    return match["name"] or None, match["start"], match["stop"]


def _bounds(files: Sequence[Path], part: str | None, start: str | None, stop: str | None) -> tuple[int, int | None]:
    """Bounds as numbers of rows; the rows are counted only for percentages and numbers from the end."""
    if not any(bound and (bound.endswith("%") or bound.startswith("-")) for bound in (start, stop)):
        return int(start or 0), None if stop is None else int(stop)
    total = sum(1 for _ in _raw_rows(files, part))

    def row(bound: str) -> int:
        number = round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
        return max(0, number + total) if number < 0 else number

    return row(start or "0"), total if stop is None else row(stop)


def _raw_rows(
    files: Sequence[Path], part: str | None, note: Note = lambda line: None
) -> Iterator[tuple[Origin, dict[str, Any]] | Fault]:
    for path in files:
        row = None
        for row in read_rows(path, part, _about(path, note)):
            yield row
        if row is None:
            raise DataError(f"{path} has no rows")


def _about(path: Path, note: Note) -> Note:
    return lambda phrase: note(f"{path}: {phrase}")


def _shape(entry: DataFile, data: DataSection, files: Sequence[Path], part: str | None) -> Shape:
    """The shape that the recipe names for a source, or else the one its rows have."""
    columns, format = entry.columns or data.columns, entry.format if entry.format != "auto" else data.format
    if entry.format != "auto":
        columns = {}
    wanted: Format | None = None if format == "auto" else format
    shapes = {path: _shape_of_file(path, part, columns, wanted) for path in files}
    first, *others = shapes.items()
    for path, shape in others:
        if (shape.format, shape.columns) != (first[1].format, first[1].columns):
            raise DataError(
                f"{path} has the keys of {shape.format}, but {first[0]} those of {first[1].format}; "
                "name them as two entries of the list, or set data.format if both can be read as one"
            )
    return first[1]


def _shape_of_file(path: Path, part: str | None, columns: dict[str, str], format: Format | None) -> Shape:
    """The shape of the first row that has known keys."""
    keys: dict[str, Any] = {}
    faults: list[Fault] = []
    for row in islice(read_rows(path, part), _ROWS_LOOKED_AT):
        if isinstance(row, Fault):
            faults.append(row)
            continue
        if columns:
            return _chosen(columns, row)
        try:
            shape = shape_of(row[1], format)
        except RowError as error:
            raise DataError(f"{row[0]}: {error}") from error
        if shape:
            return shape
        keys |= {key: value for key, value in row[1].items() if key not in keys or is_empty(keys[key])}
    if keys:
        raise DataError(_no_shape(path, keys, format))
    if faults:
        raise DataError(f"{path}: none of the first {counted(len(faults), 'row')} can be read; the first: {faults[0]}")
    raise DataError(f"{path} has no rows")


def _chosen(columns: dict[str, str], row: tuple[Origin, dict[str, Any]]) -> Shape:
    optional = {"system", "history", "input"}
    for part, name in columns.items():
        if name not in row[1] and part not in optional:
            raise DataError(
                f"{row[0]}: data.columns.{part}={name}, but the keys are {', '.join(map(repr, row[1])) or 'none'}"
                f"{nearest(name, row[1])}"
            )
    return shape_chosen(columns)


def _no_shape(path: Path, keys: dict[str, Any], format: Format | None) -> str:
    there = [key for key, value in keys.items() if not is_empty(value)] or list(keys)
    names = ", ".join(map(repr, there))
    if format:
        return f"{path}: data.format={format}, but the keys are {names}; name them with data.columns"
    if set(PREFERENCE) & set(there):
        return (
            f"{path}: preference rows (the keys are {names}): strop learns one answer of a row; "
            f"data.columns={better_answer(keys)} learns the better one"
        )
    return f"{path}: no known shape; the keys are {names}. Known shapes and their keys: {describe_shapes()}"


def read_examples(
    sources: Sequence[Source], system: str | None = None, note: Note = lambda line: None
) -> Iterator[Row | Fault]:
    """Every row of every source, in order, as an example or as a Fault, in constant memory.

    Args:
        sources: From `open_sources`.
        system: The system message of rows that have none (data.system).
        note: See `Source.rows`.

    Raises:
        DataError: A file has no rows or cannot be read to its end.
    """
    for number, source in enumerate(sources):
        reader = RowReader(source.shape, system)
        kept = 0
        for row in source.rows(note):
            if source.max_samples is not None and kept >= source.max_samples:
                break
            if isinstance(row, Fault):
                yield row
                continue
            origin, fields = row
            try:
                example, unused = reader.read(fields)
            except RowError as error:
                yield Fault(origin, str(error))
                continue
            kept += 1
            yield Row(origin, example, unused, number)
        else:  # all rows were read
            if reader.unseen:
                names = ", ".join(sorted(reader.unseen))
                raise DataError(f"{source.name}: no row has the column {names} that data.columns names")


def held_out_key(data: DataSection) -> str:
    """The key of the files that held-out rows are in: those of their own, or the training files they are split from."""
    return "data.validation_file" if data.validation_file else "data.train_file"


def held_out_sources(data: DataSection) -> list[Source]:
    """The sources that held-out rows are in.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    return open_sources(data, data.validation_file or data.train_file, held_out_key(data))


def held_out_examples(data: DataSection) -> Iterator[tuple[Origin, Example]]:
    """Every row of those files that can be used, in order.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    for row in read_examples(held_out_sources(data), data.system):
        if not isinstance(row, Fault):
            yield row.origin, row.example


def questions_at(data: DataSection, places: Collection[tuple[Origin, int]]) -> dict[tuple[Origin, int], str]:
    """What held-out samples ask, each given by its row and number of turns; reads no further than the last row."""
    wanted: dict[Origin, list[int]] = {}
    for origin, num_turns in places:
        wanted.setdefault(origin, []).append(num_turns)
    found: dict[tuple[Origin, int], str] = {}
    for origin, example in held_out_examples(data) if wanted else ():
        for num_turns in wanted.pop(origin, ()):
            found[origin, num_turns] = question_of(example, num_turns)
        if not wanted:
            break
    return found
