"""Rows that follow each other in JSON: the elements of an array, and objects that span lines."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from strop.data.examples import Fault, Origin
from strop.data.json_values import BadRowError, as_object
from strop.data.readers.json_cursor import Cursor, elements
from strop.data.readers.rows import RawRow
from strop.data.readers.text import Note
from strop.errors import DataError

Found = tuple[int, dict[str, Any] | BadRowError]
"""The line of a row, and the row or why it is none."""


def read_array(path: Path, cursor: Cursor, note: Note) -> Iterator[RawRow]:
    """The elements of the array that is all of the file."""
    yield from with_origins(path, array_rows(cursor), note)
    if cursor.peek():
        raise DataError(f"{path}:{cursor.line}: bad JSON: text after the array; write one array or JSON Lines")


def read_objects(path: Path, cursor: Cursor, note: Note) -> Iterator[RawRow]:
    """Objects one after the other, with or without commas between them."""
    yield from with_origins(path, _object_rows(cursor), note)


def array_rows(cursor: Cursor) -> Iterator[Found]:
    """The elements of the array at which a cursor stands."""
    for line in elements(cursor, cursor.line if cursor.peek() else 1):
        yield line, read_row(cursor)


def _object_rows(cursor: Cursor) -> Iterator[Found]:
    while cursor.peek():
        yield cursor.line, read_row(cursor)
        cursor.take(",")


def read_row(cursor: Cursor) -> dict[str, Any] | BadRowError:
    """The value at which a cursor stands, as a row."""
    value = cursor.value()
    try:
        return as_object(value, may_hold_surrogates=cursor.has_escaped)
    except BadRowError as error:
        return error


def with_origins(path: Path, rows: Iterator[Found], note: Note) -> Iterator[RawRow]:
    """Rows with their lines, or with their numbers where several are in a line: an origin means one row."""
    first_two = list(islice(rows, 2))
    share_a_line = len({line for line, _ in first_two}) < len(first_two)
    if share_a_line:
        note("several rows on a line (counted instead of lines)")
    for number, (line, row) in enumerate(chain(first_two, rows), 1):
        origin = Origin(str(path), number if share_a_line else line)
        yield Fault(origin, str(row)) if isinstance(row, BadRowError) else (origin, row)
