"""What an evaluation found, as `strop evaluate` returns it and evaluation.json holds it, and how each metric is shown.

Imports no torch: reports and cards read it.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.errors import RecipeError
from strop.run.durable import staged_file
from strop.run.lenient import fit


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of an evaluation, as the table of `strop evaluate`, the report and the model card show it.

    Attributes:
        label: What a reader calls it, within a sentence.
        value: Format of a value in the terminal.
        ends: Format of an interval's ends there.
        more_is_better: Whether a rise is good.
        is_share: Between 0 and 1, so pages show it in percent.
        of_answers: Scores generated answers. The others are of the reference answers' tokens.
        hub: The hub's name of it, for the card's front matter; None where the hub has none.
    """

    label: str
    value: str
    ends: str
    more_is_better: bool
    is_share: bool
    of_answers: bool
    hub: str | None = None

    @property
    def heading(self) -> str:
        """The label as the beginning of a line."""
        return self.label[0].upper() + self.label[1:]


METRICS: Mapping[str, Metric] = {
    # by key: label, formats of a value and of an interval's ends, more is better, a share, of answers, hub's name
    "nll": Metric("loss, nats a token", "{:.4f}", "{:.3f}", False, False, False),
    "perplexity": Metric("perplexity", "{:.3f}", "{:.3f}", False, False, False, "perplexity"),
    "exact_match": Metric("exact match", "{:.1%}", "{:.0%}", True, True, True, "exact_match"),
    "numeric_match": Metric("numbers match", "{:.1%}", "{:.0%}", True, True, True),
    "token_f1": Metric("token F1", "{:.3f}", "{:.3f}", True, True, True, "f1"),
    "stopped": Metric("stopped by itself", "{:.1%}", "{:.0%}", True, True, True),
}
"""Every metric by its key in evaluation.json, in the order in which tables list them. `nll` is the mean -log p of the
reference answers' tokens, in nats; `stopped`: by a stop token instead of the limit. docs/evaluation.md says more."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the 95% interval around it.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        count: Rows it was computed from.
    """

    value: float
    low: float
    high: float
    count: int


Scores = Mapping[str, Interval | None]
"""By key of `METRICS`; None where no row has the metric."""


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """How answers are generated and judged.

    Attributes:
        max_new_tokens: Longest answer.
        numeric_tolerance: Relative; see `matching.numeric_match`.
    """

    max_new_tokens: int = 96
    numeric_tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What one model answered and how right that is; `matching` defines the metrics."""

    text: str
    exact_match: bool
    numeric_match: bool | None
    token_f1: float
    stopped: bool


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A held-out question and both models' answers.

    Attributes:
        row: Its file and line.
        group: The row's group, if rows have groups.
        question: What the user asks, in the row's own words.
        reference: The right answer.
        base: The base model's answer.
        tuned: The tuned model's answer.
    """

    row: str
    group: str | None
    question: str
    reference: str
    base: JudgedAnswer
    tuned: JudgedAnswer


@dataclass(frozen=True, slots=True)
class Group:
    """Both models' scores on the rows of one group."""

    num_rows: int
    base: Scores
    tuned: Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base beside tuned on the same held-out rows.

    Attributes:
        num_rows: Held-out rows; all of them count in the loss.
        num_loss_tokens: Tokens of their answers.
        num_generated: Rows that were answered.
        settings: How they were answered and judged.
        base: The base model's scores.
        tuned: The tuned model's.
        difference: Tuned minus base, row by row.
        groups: The same scores for each group of rows; empty where there are none.
        examples: Every answer.
    """

    num_rows: int
    num_loss_tokens: int
    num_generated: int
    settings: ScoreSettings
    base: Scores
    tuned: Scores
    difference: Scores
    groups: Mapping[str, Group]
    examples: list[AnswerPair]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as stored in evaluation.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, contents: Any) -> "Evaluation | None":
        """The contents of an evaluation.json without what does not fit; None if they are of an older strop."""
        return fit(cls, contents)


_TYPES = {"text": "string", "exact_match": "bool_", "numeric_match": "bool_", "token_f1": "float64", "stopped": "bool_"}
COLUMNS = dict.fromkeys(("row", "group", "question", "reference"), "string") | {
    f"{model}_{name}": kind for model in ("base", "tuned") for name, kind in _TYPES.items()
}
"""Name and pyarrow type of each column."""


def check_path(path: Path) -> None:
    """Refuse a file that cannot be written, before any answer is generated.

    Raises:
        RecipeError: An unknown ending, no such folder, or pyarrow is missing.
    """
    if path.suffix.lower() not in _WRITERS:
        raise RecipeError(f"--answers {path}: the name must end in {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--answers {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise RecipeError(f"--answers {path}: this is there and no ordinary file; name another")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise RecipeError("writing Parquet needs pyarrow: pip install 'strop[parquet]'") from error


def write_answers(path: Path, examples: Sequence[AnswerPair]) -> None:
    """Write Parquet, JSON Lines or CSV, by the file's ending; the file appears complete or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    with staged_file(path) as work:
        _WRITERS[path.suffix.lower()](work, [_row(example) for example in examples])


def _row(example: AnswerPair) -> dict[str, Any]:
    fields = asdict(example)
    answers = {f"{model}_{name}": value for model in ("base", "tuned") for name, value in fields.pop(model).items()}
    return fields | answers


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)


_WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
}
