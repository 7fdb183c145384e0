"""Write every answer of an evaluation to a file, as a table with a row for each question."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import RecipeError

if TYPE_CHECKING:  # it imports torch
    from strop.evaluation.score import AnswerPair

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
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise RecipeError("writing Parquet needs pyarrow: pip install 'strop[parquet]'") from error


def write_answers(path: Path, examples: Sequence[AnswerPair]) -> None:
    """Write Parquet, JSON Lines or CSV, by the file's ending; the file appears complete or not at all.

    Raises:
        RecipeError: It cannot be written.
    """
    rows = [_row(example) for example in examples]
    draft = path.with_name(f"{path.name}.partial")
    try:
        _WRITERS[path.suffix.lower()](draft, rows)
        os.replace(draft, path)
    except OSError as error:
        raise RecipeError(f"--answers {path}: cannot be written: {error.strerror or error}") from error


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
