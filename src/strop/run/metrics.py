"""metrics.jsonl: one line a step and one an evaluation, appended as they happen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.errors import StropError
from strop.run.durable import replace_file


class MetricsLog:
    """Appends records to a file; each is flushed, so `tail -f` and a kill see whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; floats keep all their digits.

        Raises:
            StropError: The file cannot be written; as a rule the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            raise StropError(
                f"{self.path} cannot be written: {error.strerror}. Put that right; the same command then "
                "goes on from the newest checkpoint."
            ) from error

    def truncate_after(self, step: int) -> int:
        """Drop what a lost attempt wrote beyond the step that the run goes on from, and what cannot be read.

        Call it before the first `append` of every attempt, with step 0 where there is no checkpoint: the
        attempt before may have been killed in the middle of a line. The file is replaced in one rename.

        Returns:
            How many lines could not be read; more than 1 is more than a kill leaves.
        """
        lines = _lines(self.path)
        records = [(line, _parse(line)) for line in lines]
        kept = [line for line, record in records if record is not None and record["step"] <= step]
        replace_file(self.path, b"".join(line + b"\n" for line in kept))
        return sum(record is None for _, record in records)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics file, in order; none if it does not exist. A torn last line is left out.

    Raises:
        StropError: A line before the last is not a record; names it.
    """
    lines = _lines(path)
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise StropError(f"{path}:{number}: not a record; edited or damaged. Remove the line.")
    return records


def last_steps(path: Path) -> dict[str, int]:
    """The last step of each kind of record, train and eval; what cannot be read is passed over."""
    records = [record for line in _lines(path) if (record := _parse(line)) is not None]
    return {str(record.get("kind")): record["step"] for record in sorted(records, key=lambda record: record["step"])}


def _lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
