"""CSV and other tables of text: a header, and rows of values between commas, semicolons, tabs or bars."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from strop.data.examples import Fault, Origin
from strop.data.readers import delimiters
from strop.data.readers.delimiters import Dialect, find_dialect
from strop.data.readers.quotes import broken_record, doubtful_record, looks_like_rows
from strop.data.readers.rows import RawRow
from strop.data.readers.text import MAX_ROW_BYTES, Note, numbered_lines, read_text, too_long
from strop.errors import DataError
from strop.readable import counted
from strop.resolve import data_suffix
from strop.terminal import one_line

_SAMPLE_LINES, _SAMPLE_CHARACTERS = 100, 1 << 20

Record = tuple[int, list[str], list[str]]
"""Where a record begins, its values, and its lines."""


@dataclass(frozen=True)
class Header:
    """The columns of a table.

    Attributes:
        names: Of all columns, "" for those without one.
        named: Positions of those with one.
        num_needed: Columns that a row must have: up to the last with a name.
    """

    names: list[str]
    named: list[int]
    num_needed: int


def read_delimited(path: Path, note: Note) -> Iterator[RawRow]:
    """Rows of a table, as text.

    Raises:
        DataError: The header is faulty, or a quote swallows lines that may be rows.
    """
    # The limit is global in the csv module; its default of 128 KiB would reject long answers.
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _text_lines(path, note)
    sample = _sample(lines)
    usual = "\t" if data_suffix(path) == ".tsv" else ","
    dialect = find_dialect(sample, usual)
    _tell(dialect, usual, note)
    records = _records(path, chain(sample[dialect.num_hints :], lines), dialect)
    header = _header(path, records, note)
    num_blank = 0
    for record in records:
        if isinstance(record, Fault):
            yield record
        elif any(record[1]):
            yield _row(path, header, dialect, record)
        else:
            num_blank += len(record[1]) > 0
    if num_blank:
        note(f"{counted(num_blank, 'row')} without any value left out")


def _sample(lines: Iterator[str]) -> list[str]:
    sample: list[str] = []
    size = 0
    for line in islice(lines, _SAMPLE_LINES):
        sample.append(line)
        if (size := size + len(line)) > _SAMPLE_CHARACTERS:
            break
    return sample


def _tell(dialect: Dialect, usual: str, note: Note) -> None:
    name = delimiters.NAMES.get(dialect.delimiter, repr(dialect.delimiter))
    if dialect.delimiter != usual:
        note(f"columns separated by {name}")
    if dialect.is_spaced:
        note(f"spaces after the {name} left out")


def _text_lines(path: Path, note: Note) -> Iterator[str]:
    chunks = read_text(path, note)
    first = next(chunks, b"")
    chunks = chain([first], chunks)
    if b"\r" in first and b"\n" not in first:
        note("lines that end in CR")
        chunks = (chunk.replace(b"\r", b"\n") for chunk in chunks)
    for line, raw in numbered_lines(chunks):
        if raw is None:
            raise DataError(f"{path}:{line}: {too_long()}")
        # Bytes that are not UTF-8 become surrogates, and _row rejects the row they are in.
        yield raw.removesuffix(b"\r").decode("utf-8", errors="surrogateescape") + "\n"


def _records(path: Path, lines: Iterator[str], dialect: Dialect) -> Iterator[Record | Fault]:
    taken: list[str] = []
    reader = csv.reader(
        _remembered(lines, taken),
        delimiter=dialect.delimiter,
        skipinitialspace=dialect.is_spaced,
        strict=True,
    )
    while True:
        taken.clear()
        begun = dialect.num_hints + reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = "unexpected end" in str(error) or "field larger" in str(error)
            if is_open or len(taken) > 1:
                why = "is never closed" if is_open else "ends before other text"
                num_after = sum(1 for _ in lines) if is_open else 0
                raise DataError(broken_record(path, begun, taken, dialect, why, num_after)) from error
            yield Fault(Origin(str(path), begun), f"bad CSV: {one_line(error)}")
        else:
            yield begun, values, taken


def _remembered(lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _header(path: Path, records: Iterator[Record | Fault], note: Note) -> Header:
    record = next((record for record in records if isinstance(record, Fault) or record[1]), None)
    if isinstance(record, Fault):
        raise DataError(f"{record.origin}: {record.reason}, in the header")
    begun, names = (record[0], [name.strip() for name in record[1]]) if record else (1, [])
    named = [position for position, name in enumerate(names) if name]
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise DataError(f"{path}:{begun}: the CSV header names {', '.join(map(repr, twice))} more than once")
    if not _is_text("".join(names)):
        raise DataError(f"{path}:{begun}: the CSV header is not UTF-8; save the file as UTF-8")
    if num_unnamed := len(names) - len(named):
        columns = counted(num_unnamed, "column")
        note(f"{columns} without a name left out")
    return Header(names, named, named[-1] + 1 if named else len(names))


def _row(path: Path, header: Header, dialect: Dialect, record: Record) -> RawRow:
    begun, values, lines = record
    origin = Origin(str(path), begun)
    if len(lines) > 1 and looks_like_rows(lines, len(header.names), dialect):
        raise DataError(doubtful_record(path, begun, lines, dialect, "takes in lines that look like rows"))
    if reason := _misfit(header, values):
        if len(lines) > 1:
            raise DataError(doubtful_record(path, begun, lines, dialect, f"makes a row that has {reason}"))
        return Fault(origin, f"bad CSV: {reason}")
    if not _is_text("".join(values)):
        return Fault(origin, "not UTF-8: an invalid byte")
    if [value.strip("\ufeff ") for value in values] == header.names:
        return Fault(origin, "bad CSV: the header once more, as where files were joined")
    if len(header.named) == len(header.names):
        return origin, dict(zip(header.names, values, strict=False))  # more values are empty ones
    return origin, {header.names[position]: values[position] for position in header.named}


def _misfit(header: Header, values: list[str]) -> str | None:
    """What a row has that does not fit the header."""
    if len(values) < header.num_needed or any(values[len(header.names) :]):
        return f"{counted(len(values), 'value')}, but the header has {counted(len(header.names), 'column')}"
    if len(header.named) == len(header.names):
        return None
    for position, value in enumerate(values[: len(header.names)]):
        # Pandas writes the number of each row first, in a column without a name.
        if value and not header.names[position] and not (position == 0 and value.isdecimal()):
            return f"a value in column {position + 1}, which has no name"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
