"""samples.jsonl: what the model answers to the same held-out questions as its training goes on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from strop.errors import StropError
from strop.run.durable import replace_file
from strop.run.metrics import read_metrics


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out question, its reference, and the model's answer at a step.

    Attributes:
        row: Where the question comes from, as file:line.
    """

    step: int
    row: str
    question: str
    reference: str
    text: str


def write_samples(path: Path, step: int, samples: Sequence[Sample]) -> None:
    """Put the samples of a step in place, and drop what an attempt that was lost wrote at this step or beyond.

    One rename for all of a step: after a kill none is missing and none is there twice, whatever step the run goes
    on from.

    Raises:
        StropError: The file cannot be written; as a rule the disk is full.
    """
    earlier = [record for record in read_metrics(path) if record["step"] < step]
    lines = [json.dumps(record, ensure_ascii=False) for record in (*earlier, *map(asdict, samples))]
    try:
        replace_file(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise StropError(f"{path} cannot be written: {error.strerror}") from error


def read_samples(path: Path) -> list[Sample]:
    """All samples of a run in order; none if it has none.

    Raises:
        StropError: A line is not a sample; names the file.
    """
    try:
        return [Sample(**record) for record in read_metrics(path)]
    except TypeError as error:
        raise StropError(f"{path}: not a file of samples ({error})") from error
