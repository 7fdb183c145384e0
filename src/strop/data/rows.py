"""Files -> examples, each with its file:line; rows that cannot be used come out as Faults, in order."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from strop.data.examples import (
    Alpaca,
    Conversation,
    Example,
    Fault,
    Message,
    Origin,
    PromptCompletion,
    Text,
)
from strop.data.files import find_files
from strop.data.formats import FORMATS, Format, RowError, describe_shapes, shape_of, to_example
from strop.data.readers import read_rows
from strop.errors import DataError

__all__ = [
    "FORMATS",
    "Alpaca",
    "Conversation",
    "Example",
    "Fault",
    "Format",
    "Message",
    "Origin",
    "PromptCompletion",
    "Text",
    "detect_format",
    "find_files",
    "read_examples",
]

_ROWS_LOOKED_AT = 100


def detect_format(files: Sequence[Path]) -> Format:
    """The shape of the data, from the keys of the first row of each file that has any known ones.

    Raises:
        DataError: No known keys in the first rows, or two files of different shapes.
    """
    found: tuple[Format, Path] | None = None
    for path in files:
        shape = _shape_of_file(path)
        if found and shape != found[0]:
            raise DataError(
                f"{path} has the keys of {shape}, {found[1]} those of {found[0]}; "
                "train on files of one shape, or set data.format if both can be read as one"
            )
        found = (shape, path)
    if found is None:
        raise DataError("there are no files to read")
    return found[0]


def _shape_of_file(path: Path) -> Format:
    keys: dict[str, Any] = {}
    faults: list[Fault] = []
    for number, row in enumerate(read_rows(path)):
        if isinstance(row, Fault):
            faults.append(row)
        elif shape := shape_of(row[1]):
            return shape
        else:
            keys |= row[1]
        if number + 1 >= _ROWS_LOOKED_AT:
            break
    if keys:
        raise DataError(
            f"{path}: no known shape; the keys are {', '.join(map(repr, keys))}. "
            f"Known shapes and their keys: {describe_shapes()}"
        )
    if faults:
        raise DataError(f"{path}: none of the first {len(faults)} rows can be read; the first: {faults[0]}")
    raise DataError(f"{path} holds no rows")


def read_examples(files: Sequence[Path], format: Format) -> Iterator[tuple[Origin, Example] | Fault]:
    """Every row of every file, in order, as an example of the given shape or as a Fault. Constant memory.

    Raises:
        DataError: A file holds no rows or cannot be read at all.
    """
    for path in files:
        row = None
        for row in read_rows(path):
            if isinstance(row, Fault):
                yield row
                continue
            origin, fields = row
            try:
                yield origin, to_example(fields, format)
            except RowError as error:
                yield Fault(origin, str(error))
        if row is None:
            raise DataError(f"{path} holds no rows")
