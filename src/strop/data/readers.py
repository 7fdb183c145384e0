"""Files -> raw rows: JSON Lines, JSON, CSV and Parquet, in constant memory except for a JSON array.

A row is bytes between b"\\n" and nothing else: `str.splitlines` and text mode also split at U+2028 and
U+0085, which are legal inside a JSON string, and decoding a whole file would lose the position of a bad byte.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from strop.data.examples import Fault, Origin
from strop.errors import DataError

BOM = b"\xef\xbb\xbf"
MAX_ROW_BYTES = 16 << 20
MAX_JSON_ARRAY_BYTES = 1 << 30
_MAX_DIGITS = 1000  # far more than any real number has; Python itself gives up at 4,300 with a plain ValueError
_PARQUET_ROWS_AT_A_TIME = 1024
_OTHER_ENCODINGS = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}

RawRow = tuple[Origin, dict[str, Any]] | Fault


class _BadRowError(ValueError):
    """A row that does not parse; the message is the fault's reason."""


def read_rows(path: Path, part: str | None = None, note: Callable[[str], None] = lambda line: None) -> Iterator[RawRow]:
    """Every row of a file as a dict with text keys, or as a Fault that says why it is not.

    Raises:
        DataError: The file as a whole cannot be read: wrong encoding, no header, damaged, pyarrow missing.
    """
    try:
        match path.suffix.lower():
            case ".parquet":
                yield from _read_parquet(path)
            case ".csv":
                yield from _read_csv(path)
            case _:
                yield from _read_json(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _read_json(path: Path) -> Iterator[RawRow]:
    """JSON Lines, or one array of objects; the first character decides, because both are called .json."""
    with path.open("rb") as file:
        _skip_bom(file, path)
        start = file.tell()
        head = file.read(4096).lstrip()
        file.seek(start)
        if path.suffix.lower() == ".json" and head.startswith(b"["):
            yield from _read_json_array(file, path)
            return
        for line, raw in _lines(file):
            origin = Origin(str(path), line)
            if raw is None:
                yield Fault(origin, f"row too long: over {MAX_ROW_BYTES >> 20} MiB")
            elif raw.strip():
                yield _parse_line(origin, raw)


def _skip_bom(file: BinaryIO, path: Path) -> None:
    head = file.read(4)
    for mark, name in _OTHER_ENCODINGS.items():
        if head.startswith(mark):
            raise DataError(f"{path} is {name}, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")
    if len(head) == 4 and (head[1] == 0 or head[0] == 0):
        raise DataError(f"{path} looks like UTF-16 without a byte order mark; convert it to UTF-8 with iconv")
    file.seek(len(BOM) if head.startswith(BOM) else 0)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1, and lines without their newline; None for a line over the limit."""
    number = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(raw) > MAX_ROW_BYTES and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_ROW_BYTES)
            yield number, None
        else:
            yield number, raw.removesuffix(b"\n").removesuffix(b"\r")


def _parse_line(origin: Origin, raw: bytes) -> RawRow:
    try:
        return origin, _as_object(_DECODER.decode(raw.decode("utf-8")), may_hold_surrogates=b"\\u" in raw)
    except UnicodeDecodeError as error:
        return Fault(origin, f"not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}")
    except json.JSONDecodeError as error:
        return Fault(origin, f"bad JSON: {error.msg} at column {error.colno}")
    except _BadRowError as error:
        return Fault(origin, str(error))
    except RecursionError:
        return Fault(origin, "bad JSON: nested too deeply")


def _read_json_array(file: BinaryIO, path: Path) -> Iterator[RawRow]:
    raw = file.read(MAX_JSON_ARRAY_BYTES + 1)
    if len(raw) > MAX_JSON_ARRAY_BYTES:
        raise DataError(f"{path} is a JSON array over 1 GiB; write one object per line (JSONL) instead")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}") from error
    line, counted, at = 1, 0, _skip_space(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        origin = Origin(str(path), line)
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (json.JSONDecodeError, _BadRowError, RecursionError) as error:
            # Nothing marks where the next element starts: unlike JSON Lines, an array cannot be read any further.
            reason = "bad JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{origin}: {reason}; a JSON array cannot be read past this point") from error
        try:
            yield origin, _as_object(value, may_hold_surrogates=True)
        except _BadRowError as error:
            yield Fault(origin, str(error))
        at = _skip_space(text, at)
        more = text[at : at + 1] == ","
        if more:
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(f"{origin}: bad JSON: no ',' or ']' after this element; the file may be cut short")
    if _skip_space(text, at + 1) != len(text):
        raise DataError(f"{path}: bad JSON: there is text after the array")


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _as_object(value: Any, may_hold_surrogates: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadRowError(f"not an object: {_type_name(value)}")
    if may_hold_surrogates:
        _refuse_surrogates(value)
    return value


def _refuse_surrogates(value: Any) -> None:
    """json.loads accepts "\\ud800"; the string then fails to encode, far from its row."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                half = f"U+{ord(item[error.start]):04X}"
                raise _BadRowError(f"lone surrogate: {half} is half a character") from error


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {str(value)[:20]}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _BadRowError(f"duplicate key: '{twice}'")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise _BadRowError(f"not a number: {name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _BadRowError(f"not a number: {digits[:20]} is out of range")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _BadRowError(f"not a number: an integer of {len(digits):,} digits")
    return int(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
)


def _read_csv(path: Path) -> Iterator[RawRow]:
    # The limit is global in the csv module; its default of 128 KiB would reject long answers.
    csv.field_size_limit(MAX_ROW_BYTES)
    with path.open("rb") as file:
        _skip_bom(file, path)
        reader = csv.reader(_text_lines(file, path), strict=True)
        header = _csv_header(reader, path)
        while True:
            origin = Origin(str(path), reader.line_num + 1)
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Fault(origin, f"bad CSV: {error}")
                continue
            if values:
                yield _csv_row(origin, header, values)


def _text_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    for line, raw in _lines(file):
        if raw is None:
            raise DataError(f"{path}:{line}: row too long: over {MAX_ROW_BYTES >> 20} MiB")
        # Bytes that are not UTF-8 become surrogates, and _csv_row rejects the row they are in.
        yield raw.decode("utf-8", errors="surrogateescape") + "\n"


def _csv_header(reader: Any, path: Path) -> list[str]:
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path}:1: bad CSV header: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}:1: the CSV header names {', '.join(map(repr, twice))} more than once")
    return header


def _csv_row(origin: Origin, header: list[str], values: list[str]) -> RawRow:
    if len(values) != len(header):
        return Fault(origin, f"bad CSV: {len(values)} values, but the header has {len(header)} columns")
    try:
        "".join(values).encode("utf-8")
    except UnicodeEncodeError:
        return Fault(origin, "not UTF-8: an invalid byte")
    return origin, dict(zip(header, values, strict=True))


def _read_parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'strop[parquet]'") from error
    try:
        row = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS_AT_A_TIME):
                for value in batch.to_pylist():
                    row += 1
                    yield Origin(str(path), row), value
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or not Parquet: {error}") from error
