"""Quotes in a table that swallow the rows after them: which lines are in doubt, so that none is lost unseen."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from strop.data.readers.delimiters import Dialect

# How many lines may look like rows before they count as swallowed ones: a text may hold a short table. Where a space
# follows each delimiter, prose looks like rows too.
_FEWEST_ROWS, _FEWEST_SPACED_ROWS = 5, 20
_REMEDY = 'close the quote, or write a quote that belongs to the text as ""'


def broken_record(path: Path, begun: int, lines: Sequence[str], dialect: Dialect, why: str, num_after: int) -> str:
    """The message for a record that does not parse: the quote that opened last is to blame.

    Args:
        path: The file.
        begun: The line of the record, from 1.
        lines: The record's lines.
        dialect: Of the table.
        why: What is wrong with the quote.
        num_after: Lines after the record that cannot be read either.
    """
    *_, (opened, _) = _quoted("".join(lines), dialect)
    return _message(path, begun + opened, begun + len(lines) - 1 + num_after, why)


def doubtful_record(path: Path, begun: int, lines: Sequence[str], dialect: Dialect, why: str) -> str:
    """The message for a record of several lines that parses, but perhaps by accident: its longest quote is to blame."""
    opened, closed = max(_quoted("".join(lines), dialect), key=lambda span: span[1] - span[0])
    return _message(path, begun + opened, begun + closed, why)


def _message(path: Path, first: int, last: int, why: str) -> str:
    doubtful = f"line {first} is" if first == last else f"lines {first} to {last} ({last - first + 1} lines) are"
    return f"{path}:{first}: the quote that opens here {why}, so {doubtful} in doubt; {_REMEDY}"


def _quoted(text: str, dialect: Dialect) -> Iterator[tuple[int, int]]:
    """From which to which line of a record, from 0, each quoted value goes; up to the first that is not closed well."""
    at = line = counted = 0
    while at < len(text):
        while dialect.is_spaced and text[at] == " ":
            at += 1
        if text[at] == '"':
            start, at = at, _after_quoted(text, at + 1)
            opened = line + text.count("\n", counted, start)
            line, counted = opened + text.count("\n", start, at), at
            yield opened, line
            if text[at : at + 1] not in (dialect.delimiter, "\n"):
                return
        at = text.find(dialect.delimiter, at) + 1 or len(text)


def _after_quoted(text: str, at: int) -> int:
    """Where a quoted value that begins here has ended: behind the next quote that is not doubled."""
    while (at := text.find('"', at) + 1) and text[at : at + 1] == '"':
        at += 1
    return at or len(text)


def looks_like_rows(lines: Sequence[str], num_columns: int, dialect: Dialect) -> bool:
    """Whether each line of one record would be a row by itself, as when a stray quote is closed by another far below.

    In prose a space follows a comma, in code a semicolon ends the line, and not every line has as many as the header.
    """
    fewest = _FEWEST_SPACED_ROWS if dialect.is_spaced else _FEWEST_ROWS
    if len(lines) < fewest or num_columns < 2:
        return False
    rows = (line.strip('"\n').split(dialect.delimiter) for line in lines)
    return all(
        len(row) == num_columns
        and row[0]
        and row[-1]
        and all(cell.startswith(" ") == dialect.is_spaced for cell in row[1:] if cell)
        for row in rows
    )
