"""Files -> raw rows: JSON Lines, JSON, CSV, Parquet and Arrow as people have them, in constant memory.

Which type a file has is told by its name, and how it is written by what is in it. What was found out of the ordinary
is told, and what cannot be read to its end is refused.
"""

from collections.abc import Iterator
from pathlib import Path

from strop.data.readers.arrow import read_arrow, saved_dataset_files
from strop.data.readers.delimited import read_delimited
from strop.data.readers.encodings import BOM
from strop.data.readers.json_files import read_json
from strop.data.readers.kinds import refuse_unknown
from strop.data.readers.rows import RawRow, refuse_part
from strop.data.readers.text import Note
from strop.errors import DataError
from strop.resolve import data_suffix

__all__ = ["BOM", "RawRow", "read_rows", "refuse_unknown", "saved_dataset_files"]


def read_rows(path: Path, part: str | None = None, note: Note = lambda found: None) -> Iterator[RawRow]:
    """Every row of a file as a dict with text keys, or as a Fault that says why it is not.

    Args:
        path: The file.
        part: Which of several lists of rows in a JSON file; the default is `train`, or the only one.
        note: Told once what was found out of the ordinary, such as "read as cp1252"; without the path.

    Raises:
        DataError: The file as a whole cannot be read: damaged, cut short, no header, no such part, a package missing.
    """
    told: set[str] = set()

    def note_once(found: str) -> None:
        if found not in told:
            told.add(found)
            note(found)

    try:
        match data_suffix(path):
            case ".parquet" | ".arrow" | ".feather":
                yield from read_arrow(path, part, note_once)
            case ".csv" | ".tsv":
                refuse_part(path, part)
                yield from read_delimited(path, note_once)
            case _:
                yield from read_json(path, part, note_once)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
