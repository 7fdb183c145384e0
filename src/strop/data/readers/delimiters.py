"""What separates the columns of a table, found in its first lines."""

import contextlib
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HINT = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's first line, where there is one


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Attributes:
        delimiter: Between columns.
        is_spaced: A space follows each delimiter of the header, and is no part of what it separates.
        num_hints: Lines before the header that only name the delimiter: 0 or 1.
    """

    delimiter: str
    is_spaced: bool
    num_hints: int


def find_dialect(lines: Sequence[str], usual: str) -> Dialect:
    """The delimiter that cuts most lines into as many columns as the header.

    Args:
        lines: The first of a table.
        usual: The delimiter that its name promises, which decides between equals.
    """
    hint = _HINT.fullmatch(lines[0]) if lines else None
    lines = lines[1:] if hint else lines
    choices = [hint.group(1)] if hint else sorted(NAMES, key=lambda delimiter: delimiter != usual)
    delimiter = max(choices, key=lambda delimiter: _fit(lines, delimiter))
    header = next(iter(_rows(lines, delimiter)), [])
    is_spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    return Dialect(delimiter, is_spaced, int(hint is not None))


def _fit(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    header, *rows = _rows(lines, delimiter) or [[]]
    if len(header) < 2:
        return 0.0, 0
    return (1 + sum(len(row) == len(header) for row in rows)) / (1 + len(rows)), len(header)


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(row for row in csv.reader(lines, delimiter=delimiter) if row)
    return rows
