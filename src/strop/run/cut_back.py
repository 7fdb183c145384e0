"""metrics.jsonl and samples.jsonl when a run resumes: as they were at the checkpoint, or whatever is whole of them.

A checkpoint has the size and the SHA-256 of both files as they were when it was saved. What was written after that is
made again, so it is dropped. What differs before that is damage: whole lines stay, and the loss is told.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.run.durable import replace_file
from strop.run.records import Record, Sample, TrainRecord, as_record, as_sample, read_bytes

_SHOWN = 8


def mark_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, for a checkpoint's state; those of nothing where there is no file.

    Raises:
        StorageError: It cannot be read.
    """
    data = read_bytes(path)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def cut_metrics(path: Path, step: int, mark: Mapping[str, Any] | None) -> list[str]:
    """Cut metrics.jsonl back to a checkpoint.

    Args:
        path: The file; it is replaced in one rename. One that is missing is made.
        step: Updates made by the checkpoint; -1 where there is none, and the run begins again.
        mark: What the checkpoint has of the file; None if it is an older strop's, or there is none.

    Returns:
        What was lost, a sentence each; empty if nothing was.

    Raises:
        StorageError: The file cannot be read or written.
    """

    def missing(records: Sequence[Record]) -> list[int]:
        there = {record.step for record in records if isinstance(record, TrainRecord)}
        return [number for number in range(1, step + 1) if number not in there]

    return _cut(path, step, mark, as_record, missing)


def cut_samples(path: Path, step: int, mark: Mapping[str, Any] | None, evaluated: Iterable[int]) -> list[str]:
    """Cut samples.jsonl back to a checkpoint, as `cut_metrics` does; `evaluated` are the steps with an evaluation."""

    def missing(samples: Sequence[Sample]) -> list[int]:
        there = {sample.step for sample in samples}
        return [number for number in sorted(set(evaluated)) if number not in there]

    return _cut(path, step, mark, as_sample, missing)


def _cut(
    path: Path,
    step: int,
    mark: Mapping[str, Any] | None,
    parse: Callable[[bytes], Record | Sample | None],
    missing: Callable[[Sequence[Any]], list[int]],
) -> list[str]:
    data = read_bytes(path)
    whole = _as_marked(data, mark)
    if whole is not None:
        if data != whole:
            replace_file(path, whole)
        return []
    *lines, _ = data.split(b"\n")  # without its end, the last line was torn by a kill
    found = [(line, parse(line)) for line in lines]
    kept = [(line, each) for line, each in found if each is not None and each.step <= step]
    if data:  # else there is no file, and a run without samples gets none
        replace_file(path, b"".join(line + b"\n" for line, _ in kept))
    if step < 0:
        return []
    damaged = sum(each is None for _, each in found)
    return _told(path, step, damaged, missing([each for _, each in kept]), mark is not None)


def _as_marked(data: bytes, mark: Mapping[str, Any] | None) -> bytes | None:
    """The part of the file that the checkpoint speaks of, if it is as it was."""
    size = mark.get("size") if mark else None
    if not isinstance(size, int) or size > len(data):
        return None
    return data[:size] if hashlib.sha256(data[:size]).hexdigest() == mark.get("sha256") else None  # type: ignore[union-attr]


def _told(path: Path, step: int, damaged: int, missing: Sequence[int], marked: bool) -> list[str]:
    said = []
    if damaged:
        said.append(f"{damaged:,} {'line' if damaged == 1 else 'lines'} could not be read")
    if missing:
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        said.append(f"nothing is left of step {', '.join(map(str, missing[:_SHOWN]))}{more}")
    if not said and marked:
        said.append("some of its lines were changed or removed, and its figures may be wrong")
    return [f"{path.name} is not as it was at step {step}: {'; '.join(said)}"] if said else []
