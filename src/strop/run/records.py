"""What a run writes as it trains: metrics.jsonl, a line for each step and evaluation, and samples.jsonl, its answers.

Both files are JSON Lines that other tools read. A kill can leave the last line torn; readers skip it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from strop.errors import StropError
from strop.run.durable import replace_file
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
            StropError: The file cannot be written; as a rule the disk is full.
        """
        known = {key: value for key, value in asdict(record).items() if value is not None}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": record.kind, **known}) + "\n")
        except OSError as error:
            raise StropError(
                f"{self.path} cannot be written: {error.strerror}. Fix that and run the same command again: it resumes "
                "from the newest checkpoint."
            ) from error

    def truncate_after(self, step: int) -> int:
        """Drop what a lost attempt wrote after the step that the run resumes from, and what cannot be read.

        Call it before the first `append` of every attempt, with -1 where there is no checkpoint (the base is
        evaluated again): the attempt before may have been killed in the middle of a line. The file is replaced in one
        rename.

        Returns:
            How many lines could not be read; more than 1 is more than a kill leaves.
        """
        lines = _lines(self.path)
        records = [(line, _record(line)) for line in lines]
        kept = [line for line, record in records if record is not None and record.step <= step]
        replace_file(self.path, b"".join(line + b"\n" for line in kept))
        return sum(record is None for _, record in records)


def read_metrics(path: Path) -> list[Record]:
    """All records of a metrics file, in order; none if it does not exist. A torn last line is skipped.

    Raises:
        StropError: A line before the last is not a record; names it.
    """
    return _all_of(path, _record)


def last_steps(path: Path) -> dict[str, int]:
    """The last step of each kind of record, train and eval; lines that cannot be read are skipped."""
    records = [record for line in _lines(path) if (record := _record(line)) is not None]
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
        StropError: The file cannot be written; as a rule the disk is full.
    """
    earlier = [sample for sample in read_samples(path) if sample.step < step]
    lines = [json.dumps(asdict(sample), ensure_ascii=False) for sample in (*earlier, *samples)]
    try:
        replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise StropError(f"{path} cannot be written: {error.strerror}") from error


def read_samples(path: Path) -> list[Sample]:
    """All samples of a run in order; none if it has none. A torn last line is skipped.

    Raises:
        StropError: A line before the last is not a sample; names it.
    """
    return _all_of(path, _sample)


def sound_samples(path: Path) -> tuple[list[Sample], int]:
    """All samples that can be read, and how many lines cannot."""
    found = [_sample(line) for line in _lines(path)]
    samples = [sample for sample in found if sample is not None]
    return samples, len(found) - len(samples)


def _all_of(path: Path, parse: Callable[[bytes], _T | None]) -> list[_T]:
    lines = _lines(path)
    found = [parse(line) for line in lines]
    for number, parsed in enumerate(found[:-1], start=1):
        if parsed is None:
            raise StropError(f"{path}:{number}: this line was edited or damaged. Remove it.")
    return [parsed for parsed in found if parsed is not None]


def _lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _record(line: bytes) -> Record | None:
    contents = _object(line)
    kind = contents.get("kind")
    return fit(_KINDS[kind], contents) if isinstance(kind, str) and kind in _KINDS else None


def _sample(line: bytes) -> Sample | None:
    return fit(Sample, _object(line))


def _object(line: bytes) -> dict[str, Any]:
    try:
        contents = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return contents if isinstance(contents, dict) else {}
