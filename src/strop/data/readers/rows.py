"""What a reader gives for each row of a file, and which rows of a file that holds several lists of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.data.examples import Fault, Origin
from strop.data.readers.text import Note
from strop.errors import DataError

RawRow = tuple[Origin, dict[str, Any]] | Fault
"""A row with text keys, or why it is none."""


def choose_part(path: Path, lists: Mapping[str, int], part: str | None, note: Note) -> str:
    """The list of rows that is meant: the one asked for, else 'train', else the only one that is not empty.

    Args:
        path: For messages.
        lists: Their names and how many rows each has.
        part: The name asked for.
        note: Told which was chosen, and which are not read.

    Raises:
        DataError: There is no such list, or several and none is meant.
    """
    there = {name: f"{name!r} ({count} {'row' if count == 1 else 'rows'})" for name, count in lists.items()}
    filled = [name for name, count in lists.items() if count] or list(lists)
    chosen = part or (filled[0] if "train" not in lists and len(filled) == 1 else "train")
    if chosen not in lists:
        raise DataError(f"{path} has no {chosen!r}: it has {', '.join(there.values())}; say which of them")
    others = [what for name, what in there.items() if name != chosen]
    note(f"rows of {chosen!r}" + (f"; not read: {', '.join(others)}" if others else ""))
    return chosen


def refuse_part(path: Path, part: str | None) -> None:
    """Refuse to look for a part in a file that holds one list of rows; that is `train`, as in datasets.

    Raises:
        DataError: Another part is asked for.
    """
    if part not in (None, "train"):
        raise DataError(f"{path} has no {part!r}: it holds one list of rows, without a name")
