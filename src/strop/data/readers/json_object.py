"""A file that is one JSON object: rows under a name, {"data": [...]} or {"train": [...], "test": [...]}; columns, as
pandas writes them; rows by their index; or a row.

The file is read twice: the first time for its outline, so that its rows need not be kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from strop.data.examples import Fault, Origin
from strop.data.json_values import BadRowError, Decode, as_object
from strop.data.readers.json_cursor import Cursor, elements, members
from strop.data.readers.json_documents import Found, array_rows, read_objects, read_row, with_origins
from strop.data.readers.rows import RawRow, choose_part, refuse_part
from strop.data.readers.text import Note, read_text
from strop.data.rows.columns import shape_of
from strop.data.rows.fields import RowError
from strop.errors import DataError

_MAX_COLUMNS_BYTES = 1 << 30
NAMES_OF_LISTS = {
    *("data", "dataset", "datasets", "rows", "examples", "example", "records", "items", "samples", "entries"),
    *("instances", "results", "list", "documents", "train", "training", "train_data", "train_set"),
    *("test", "testing", "test_data", "test_set", "validation", "valid", "val", "dev", "eval", "evaluation"),
}
"""Under which files keep their rows."""

_NAMES_OF_TURNS = {"messages", "conversations", "conversation", "contents", "dialogue", "dialog", "segments"}
_ANY_TEXT = "[a text, or turns as text]"
_SPEAKERS = {"role", "from", "speaker", "author", "sender"}

Kind = Literal["rows", "turns", "numbers", "values", "empty list", "by index", "object", "value"]


@dataclass(frozen=True)
class Member:
    """What an object has under a key.

    Attributes:
        kind: A list of rows, turns, numbers, other values or nothing; an object with numbers as its keys, or any other;
            or a value.
        count: Of the elements.
        line: Where the value begins.
    """

    kind: Kind
    count: int
    line: int


Outline = dict[str, Member]


def outline(path: Path, cursor: Cursor) -> Outline:
    """What is in the object at which a cursor stands; reads to its end.

    Raises:
        DataError: It is broken, or has a key twice.
    """
    found: Outline = {}
    for key in members(cursor):
        if key in found:
            raise DataError(f"{path}:{cursor.line}: duplicate key: '{key}'")
        cursor.peek()
        line = cursor.line
        kind, count = _look_at(cursor, "rows" if key.lower() not in _NAMES_OF_TURNS else "turns")
        if kind == "turns" and key.lower() in NAMES_OF_LISTS:
            kind = "rows"
        found[key] = Member(kind, count, line)
    return found


def is_indexed(value: dict[str, Any]) -> bool:
    """Whether an object has columns, each with its values by their index, as pandas writes them."""
    return bool(value) and all(
        isinstance(item, dict) and item and all(key.isdecimal() for key in item) for item in value.values()
    )


def _look_at(cursor: Cursor, objects: Kind = "rows") -> tuple[Kind, int]:
    """The kind of a value and its size; `objects` is what those in a list are if nothing in them says it."""
    match cursor.peek():
        case "[":
            return _look_at_list(cursor, objects)
        case "{":
            return _look_at_object(cursor)
        case _:
            cursor.value()
            return "value", 1


def _look_at_list(cursor: Cursor, objects: Kind) -> tuple[Kind, int]:
    kind: Kind = "empty list"
    count = 0
    for _ in elements(cursor, cursor.line):
        value = cursor.value()
        count += 1
        if kind == "empty list" or (kind == "values" and isinstance(value, dict)):
            kind = _kind_of(value, objects) if kind == "empty list" else "rows"
    return kind, count


def _kind_of(first: Any, objects: Kind) -> Kind:
    """The kind of a list by its first element."""
    if not isinstance(first, dict):
        return "numbers" if isinstance(first, int) else "values"
    return "turns" if first.keys() & _SPEAKERS else "rows" if first.keys() & _NAMES_OF_TURNS else objects


def _look_at_object(cursor: Cursor) -> tuple[Kind, int]:
    count = 0
    is_by_index = True
    for key in members(cursor):
        cursor.value()
        count += 1
        is_by_index = is_by_index and key.isdecimal()
    return ("by index" if is_by_index and count else "object"), count


def read_object(path: Path, found: Outline, part: str | None, decode: Decode, note: Note) -> Iterator[RawRow]:
    """The rows of a file that is one object.

    Raises:
        DataError: There is no such part, or the columns do not fit together.
    """

    text = read_text(path, note)
    if lists := _lists_of_rows(found):
        chosen = choose_part(path, lists, part, note)
        yield from _read_list(path, found, chosen, Cursor(path, text, decode), note)
        return
    refuse_part(path, part)
    kinds = {member.kind for member in found.values()}
    if (kinds <= {"values", "numbers"} and not _is_row(found)) or kinds == {"by index"}:
        note("columns instead of rows (numbered, as they have no line)")
        yield from _read_columns(path, Cursor(path, _limited(path, text), decode))
    elif kinds == {"object"} and all(key.isdecimal() for key in found):
        note("rows by their index")
        yield from with_origins(path, _rows_by_key(Cursor(path, text, decode)), note)
    else:
        yield from read_objects(path, Cursor(path, text, decode), note)


def _lists_of_rows(found: Outline) -> dict[str, int]:
    """The lists of rows and how many each has; none if the object is itself a row, such as one with messages."""
    lists = {key: member.count for key, member in found.items() if member.kind in ("rows", "empty list")}
    is_named = any(key.lower() in NAMES_OF_LISTS for key in lists)
    is_alone = len(found) == 1 and "rows" in {member.kind for member in found.values()}
    return lists if (is_named or is_alone) and not _is_row(found) else {}


def _is_row(found: Outline) -> bool:
    """Whether an object is itself a row: it has turns, tokens, or texts that make one."""
    if any(
        member.kind == "turns" or (key == "input_ids" and member.kind == "numbers") for key, member in found.items()
    ):
        return True
    try:
        return shape_of({key: _ANY_TEXT for key, member in found.items() if member.kind == "value"}) is not None
    except RowError:  # a row that can be read in two ways
        return True


def _read_list(path: Path, found: Outline, chosen: str, cursor: Cursor, note: Note) -> Iterator[RawRow]:
    if unused := [key for key, member in found.items() if member.kind not in ("rows", "empty list")]:
        note(f"not used: {', '.join(map(repr, unused))}")
    for key in members(cursor):
        if key == chosen:
            yield from with_origins(path, array_rows(cursor), note)
            return
        _look_at(cursor)


def _rows_by_key(cursor: Cursor) -> Iterator[Found]:
    for _ in members(cursor):
        cursor.peek()
        yield cursor.line, read_row(cursor)


def _read_columns(path: Path, cursor: Cursor) -> Iterator[RawRow]:
    """Rows from columns, which must be in memory for it."""
    columns: dict[str, dict[str, Any]] = {}
    for key in members(cursor):
        columns[key] = _keyed(path, cursor) if cursor.peek() == "{" else _listed(cursor)
    first, values = next(iter(columns.items()))
    for key, other in columns.items():
        if other.keys() != values.keys():
            what = f"{len(values)} values, {key!r} has {len(other)}" if len(other) != len(values) else "another index"
            raise DataError(f"{path}: the columns do not fit together: {first!r} has {what}")
    for number, index in enumerate(values, 1):
        origin = Origin(str(path), number)
        try:
            yield origin, as_object({key: column[index] for key, column in columns.items()}, may_hold_surrogates=True)
        except BadRowError as error:
            yield Fault(origin, str(error))


def _listed(cursor: Cursor) -> dict[str, Any]:
    return {str(index): cursor.value() for index, _ in enumerate(elements(cursor, cursor.line))}


def _keyed(path: Path, cursor: Cursor) -> dict[str, Any]:
    column: dict[str, Any] = {}
    for key in members(cursor):
        if key in column:
            raise DataError(f"{path}:{cursor.line}: duplicate key: '{key}'")
        column[key] = cursor.value()
    return column


def _limited(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    left = _MAX_COLUMNS_BYTES
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise DataError(f"{path} has columns instead of rows and is over 1 GiB; write it as JSON Lines")
        yield chunk
