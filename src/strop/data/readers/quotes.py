"""Quotes in a table that swallow the rows after them: which lines are in doubt, so that none is lost unseen."""

from collections.abc import Sequence
from pathlib import Path

_FEWEST_ROWS = 5  # that a quoted text looks like before it counts as swallowed rows: a text may hold a short table
_REMEDY = 'close the quote, or write a quote that belongs to the text as ""'


def doubt_about(path: Path, begun: int, lines: Sequence[str], delimiter: str, why: str, num_after: int = 0) -> str:
    """The message for a record that cannot be trusted.

    Args:
        path: The file.
        begun: The line of the record, from 1.
        lines: The record's lines.
        delimiter: Between columns.
        why: It cannot.
        num_after: Lines after it that cannot be read either.
    """
    opened = _last_opened(lines, delimiter)
    first, last = begun + opened, begun + len(lines) - 1 + num_after
    doubtful = f"line {first} is" if first == last else f"lines {first} to {last} ({last - first + 1} lines) are"
    return f"{path}:{first}: the quote that opens here {why}, so {doubtful} in doubt; {_REMEDY}"


def _last_opened(lines: Sequence[str], delimiter: str) -> int:
    """Which of a record's lines its last quoted value opens in, from 0."""
    text = "".join(lines)
    at = opened = 0
    while at < len(text):
        start = at + len(text[at : at + 80]) - len(text[at : at + 80].lstrip(" "))
        if text[start] == '"':
            opened = start
            at = _after_quoted(text, start + 1)
        at = text.find(delimiter, at) + 1 or len(text)
    return text.count("\n", 0, opened)


def _after_quoted(text: str, at: int) -> int:
    while (at := text.find('"', at) + 1) and text[at : at + 1] == '"':
        at += 1
    return at or len(text)


def looks_like_rows(lines: Sequence[str], num_columns: int, delimiter: str) -> bool:
    """Whether each line of one record would be a row by itself, as when a stray quote is closed by another far below.

    In prose a space follows a comma, and not every line has as many of them as the header.
    """
    return len(lines) >= _FEWEST_ROWS and all(
        line.count(delimiter) == num_columns - 1 and f"{delimiter} " not in line for line in lines
    )
