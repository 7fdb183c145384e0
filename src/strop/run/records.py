"""What a run writes as it trains: metrics.jsonl, a line for each step and evaluation, and samples.jsonl, its answers.

Both files are JSON Lines that other tools read. A kill can leave the last line torn; readers skip it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from strop.errors import StorageError
from strop.run.durable import replace_file, writing
from strop.run.lenient import fit

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecord:
    """A step's line in metrics.jsonl.

    Attributes:
        step: Counted from 1.
        loss: Mean -log p over the learned tokens of the whole step, before the update.
        learning_rate: Of this step.
        grad_norm: L2 norm of the gradient before clipping.
        num_tokens: Tokens of the samples.
        num_executed_tokens: Tokens computed: a prefix that samples of a microbatch share counts once. None in lines of
            an old strop, which shared none.
        num_loss_tokens: Learned tokens.
        tokens_per_second: Of the samples' tokens.
        samples_per_second: Likewise.
        peak_memory_gib: Allocated by torch at most so far; None on a CPU.
        rank_seconds: Of each rank, how long its own microbatches took; None for one rank.
        dollars: So far, over all attempts; None where nothing is billed.
    """

    kind: ClassVar[str] = "train"

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    num_executed_tokens: int | None = None
    num_loss_tokens: int
    tokens_per_second: float
    samples_per_second: float
    peak_memory_gib: float | None = None
    rank_seconds: list[float] | None = None
    dollars: float | None = None


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """An evaluation's line in metrics.jsonl.

    Attributes:
        step: Updates made by then.
        eval_loss: Mean -log p over the learned tokens of the held-out rows.
    """

    kind: ClassVar[str] = "eval"

    step: int
    eval_loss: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A line of samples.jsonl: a held-out question, its reference, and the model's answer at a step.

    Attributes:
        row: Where the question comes from, as file:line.
    """

    step: int
    row: str
    question: str
    reference: str
    text: str


Record = TrainRecord | EvalRecord
_KINDS: dict[Any, type[Record]] = {kind.kind: kind for kind in (TrainRecord, EvalRecord)}


class MetricsLog:
    """Appends records to metrics.jsonl; each is flushed, so `tail -f` and a kill see whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Add one record; floats keep all their digits.

        Raises:
            StorageError: The file cannot be written; as a rule the disk is full.
        """
        known = {key: value for key, value in asdict(record).items() if value is not None}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": record.kind, **known}) + "\n")

    def sync(self) -> None:
        """Wait until all that was appended is on the disk.

        Raises:
            StorageError: It cannot be written.
        """
        with writing(self.path), self.path.open("ab") as file:
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[Record]:
    """All records of a metrics file, in order; none if it does not exist. A torn last line is skipped.

    Raises:
        StorageError: The file cannot be read; or a line before the last is not a record, and is named.
    """
    return _all_of(path, as_record)


def last_steps(path: Path) -> dict[str, int]:
    """The last step of each kind of record, train and eval; lines that cannot be read are skipped."""
    records = [record for line in _lines(path) if (record := as_record(line)) is not None]
    return {record.kind: record.step for record in sorted(records, key=lambda record: record.step)}


def base_and_adapter(
    losses: Iterable[tuple[int, float]], adapter_step: int | None
) -> tuple[float | None, float | None]:
    """The held-out losses of the base model and of the adapter; None if it was not evaluated.

    Args:
        losses: Steps and the loss after each.
        adapter_step: From the manifest; where it is not known, the last evaluation is meant.
    """
    by_step = dict(losses)
    base = by_step.pop(0, None)
    last = adapter_step if adapter_step in by_step else max(by_step, default=None)
    return base, None if last is None else by_step[last]


def seconds_of(steps: Iterable[TrainRecord]) -> float:
    """The training time of these steps."""
    return sum(step.num_tokens / step.tokens_per_second for step in steps if step.tokens_per_second > 0)


def write_samples(path: Path, step: int, samples: Sequence[Sample]) -> None:
    """Put the samples of a step in place, and drop what an attempt that was lost wrote at this step or later.

    One rename for all of a step: after a kill none is missing and none is there twice, whatever step the run resumes
    from.

    Raises:
        StorageError: The file cannot be written; as a rule the disk is full.
    """
    earlier = [sample for sample in sound_samples(path)[0] if sample.step < step]
    lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in (*earlier, *samples)]
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())


def changed_records(folder: Path, marks: Mapping[str, str]) -> list[str]:
    """Names of the records in a run folder that are not as they were.

    Args:
        folder: The run's.
        marks: The SHA-256 of each by name, as run.json has it from when the run finished.

    Raises:
        StorageError: One cannot be read.
    """
    return [name for name, mark in marks.items() if hashlib.sha256(read_bytes(folder / name)).hexdigest() != mark]


def read_samples(path: Path) -> list[Sample]:
    """All samples of a run in order; none if it has none. A torn last line is skipped.

    Raises:
        StorageError: The file cannot be read; or a line before the last is not a sample, and is named.
    """
    return _all_of(path, as_sample)


def sound_samples(path: Path) -> tuple[list[Sample], int]:
    """All samples that can be read, and how many lines cannot."""
    found = [as_sample(line) for line in _lines(path)]
    samples = [sample for sample in found if sample is not None]
    return samples, len(found) - len(samples)


def _all_of(path: Path, parse: Callable[[bytes], _T | None]) -> list[_T]:
    lines = _lines(path)
    found = [parse(line) for line in lines]
    for number, parsed in enumerate(found[:-1], start=1):
        if parsed is None:
            raise StorageError(f"{path}:{number}: this line was edited or damaged. Remove it.")
    return [parsed for parsed in found if parsed is not None]


def read_bytes(path: Path) -> bytes:
    """What a file holds; nothing where there is no file.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _lines(path: Path) -> list[bytes]:
    data = read_bytes(path)
    return data.removesuffix(b"\n").split(b"\n") if data else []


def as_record(line: bytes) -> Record | None:
    """A line of metrics.jsonl; None if it is none."""
    contents = _object(line)
    kind = contents.get("kind")
    return fit(_KINDS[kind], contents) if isinstance(kind, str) and kind in _KINDS else None


def as_sample(line: bytes) -> Sample | None:
    """A line of samples.jsonl; None if it is none."""
    return fit(Sample, _object(line))


def _object(line: bytes) -> dict[str, Any]:
    try:
        contents = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return contents if isinstance(contents, dict) else {}
