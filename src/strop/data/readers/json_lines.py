"""JSON Lines: an object in each line. A line that is none is a fault, and the next one is read."""

import json
from collections.abc import Iterator
from pathlib import Path

from strop.data.examples import Fault, Origin
from strop.data.json_values import SPACE, BadRowError, Decode, as_object
from strop.data.readers.rows import RawRow
from strop.data.readers.text import Note, numbered_lines, read_text, too_long


def read_json_lines(path: Path, decode: Decode, note: Note) -> Iterator[RawRow]:
    """Every line that is not blank, as a row or a fault."""
    file = str(path)
    for line, raw in numbered_lines(read_text(path, note)):
        if raw is None:
            yield Fault(Origin(file, line), too_long())
        elif stripped := raw.strip(SPACE):
            yield _parse(Origin(file, line), stripped, raw, decode, note)


def _parse(origin: Origin, stripped: bytes, raw: bytes, decode: Decode, note: Note) -> RawRow:
    try:
        text = stripped.decode("utf-8")
        value, end = decode(text, 0)
        if end < len(text):
            _take_comma(text, end, note)
        return origin, as_object(value, may_hold_surrogates=b"\\u" in stripped)
    except UnicodeDecodeError as error:
        return Fault(origin, f"not UTF-8: byte {_indent(raw) + error.start + 1} is 0x{stripped[error.start]:02x}")
    except json.JSONDecodeError as error:
        return Fault(origin, f"bad JSON: {error.msg} at column {_indent(raw) + error.colno}")
    except BadRowError as error:
        return Fault(origin, str(error))
    except RecursionError:
        return Fault(origin, "bad JSON: nested too deeply")


def _take_comma(text: str, end: int, note: Note) -> None:
    if text[end:].strip() != ",":
        raise json.JSONDecodeError("Extra data", text, end)
    note("commas between the rows")


def _indent(raw: bytes) -> int:
    return len(raw) - len(raw.lstrip(SPACE))
