"""JSON files by their structure, not by their names: an object in each line, an array, or objects that hold rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.data.json_values import SPACE, json_decoder
from strop.data.readers.json_cursor import Cursor
from strop.data.readers.json_documents import read_array, read_objects
from strop.data.readers.json_lines import read_json_lines
from strop.data.readers.json_object import NAMES_OF_LISTS, is_indexed, outline, read_object
from strop.data.readers.rows import RawRow, refuse_part
from strop.data.readers.text import Note, numbered_lines, read_text
from strop.resolve import data_suffix

_LINES = (".jsonl", ".ndjson")
_PLAIN = json.JSONDecoder()


def read_json(path: Path, part: str | None, note: Note) -> Iterator[RawRow]:
    """Rows of a JSON file.

    A file whose first line is a whole object, and not all of the file, is JSON Lines. Everything else is read as JSON
    with a window that moves over the file.

    Raises:
        DataError: The JSON is broken, so that what follows cannot be read; or there is no such part.
    """
    decode = json_decoder(note).raw_decode
    begins_with = _first_character(read_text(path, note))
    if begins_with == b"{" and _is_document(path, note):
        yield from _read_document(path, part, note)
        return
    refuse_part(path, part)
    if begins_with == b"[":
        if data_suffix(path) != ".json":
            note("a JSON array")
        yield from read_array(path, Cursor(path, read_text(path, note), decode), note)
    else:
        yield from read_json_lines(path, decode, note)


def _read_document(path: Path, part: str | None, note: Note) -> Iterator[RawRow]:
    decode = json_decoder(note).raw_decode
    cursor = Cursor(path, read_text(path, note), decode)
    found = outline(path, cursor)
    if cursor.peek():
        refuse_part(path, part)
        note("objects one after the other, not one in each line")
        yield from read_objects(path, Cursor(path, read_text(path, note), decode), note)
    else:
        yield from read_object(path, found, part, decode, note)


def _first_character(chunks: Iterator[bytes]) -> bytes:
    return next((start[:1] for chunk in chunks if (start := chunk.lstrip(SPACE))), b"")


def _is_document(path: Path, note: Note) -> bool:
    """Whether a file that begins with "{" is one object, or objects that span lines: no JSON Lines."""
    lines = (raw for _, raw in numbered_lines(read_text(path, note)) if raw is None or raw.strip(SPACE))
    first = next(lines)
    is_all = (second := next(lines, b"")) == b""
    if first is None:
        return is_all or not _is_row(second)
    text = first.strip(SPACE).decode("utf-8", "replace")
    try:
        value, end = _PLAIN.raw_decode(text)
    except json.JSONDecodeError as error:
        # A row that was cut short also ends too early, but then the next line is a row.
        ends_early = error.pos >= len(text) or (is_all and error.msg.startswith("Unterminated"))
        return ends_early and (text[-1] in "[:" or not _is_row(second))
    except (ValueError, RecursionError):  # a giant integer, deep nesting
        return False
    rest = text[end:].strip()
    return rest.startswith("{") or (is_all and rest in ("", ",") and _holds_rows(value, path))


def _holds_rows(value: dict[str, Any], path: Path) -> bool:
    """Whether the only object of a file is more than one row. In a file named .jsonl, a row may well have lists."""
    if data_suffix(path) not in _LINES:
        return any(isinstance(item, dict | list) for item in value.values())
    return is_indexed(value) or any(
        key.lower() in NAMES_OF_LISTS
        and isinstance(item, list)
        and (isinstance(item[0], dict) if item else len(value) == 1)
        for key, item in value.items()
    )


def _is_row(line: bytes | None) -> bool:
    try:
        return isinstance(json.loads((line or b"").rstrip(SPACE + b",")), dict)
    except (ValueError, RecursionError):
        return False
