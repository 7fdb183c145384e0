"""Every shape of rows, in every file format, from a file to an adapter and its evaluation."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import strop
from strop.recipe import load_recipe
from strop.run.records import TrainRecord
from tiny_runs import write_model

Row = dict[str, Any]
SHAPES: dict[str, Callable[[int], Row]] = {
    "alpaca": lambda i: {"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."},
    "messages": lambda i: {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {i}."},
            {"role": "assistant", "content": f"{i}."},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": f"{i}, again."},
        ]
    },
    "sharegpt": lambda i: {
        "conversations": [{"from": "human", "value": f"Say {i}."}, {"from": "gpt", "value": f"It is {i}."}]
    },
    "prompt_completion": lambda i: {"prompt": f"Q: say {i}\nA:", "completion": f" it is {i}"},
    "text": lambda i: {"text": f"Once there was a number, and it was {i}."},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def write_rows(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("shape", "suffix", "settings"),
    [
        *((shape, "jsonl", {}) for shape in SHAPES),
        ("alpaca", "json", {"data.template": "alpaca"}),
        ("alpaca", "csv", {"data.train_on": "all"}),
        ("messages", "parquet", {"train.gradient_checkpointing": True}),
        ("prompt_completion", "csv", {"model.precision": "bfloat16"}),
    ],
)
def test_trains_and_evaluates(
    shape: str, suffix: str, settings: Row, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    train = write_rows(tmp_path / f"train.{suffix}", [SHAPES[shape](i) for i in range(24)])
    (tmp_path / "mine.yaml").write_text(
        json.dumps(
            {
                "model": {"model_name_or_path": str(model), "max_seq_length": 128},
                "lora": {"r": 2},
                "data": {"train_file": str(train), "validation_split_percentage": 30},
                "train": {"max_steps": 3, "learning_rate": 1e-2, "output_dir": str(tmp_path / "run")},
            }
        )
    )
    run = strop.train(load_recipe(str(tmp_path / "mine.yaml"), settings))
    assert run.manifest.format == shape
    steps = [record for record in run.metrics() if isinstance(record, TrainRecord)]
    tokens, executed = sum(step.num_tokens for step in steps), sum(step.num_executed_tokens or 0 for step in steps)
    assert run.manifest.sharing_ratio == pytest.approx(tokens / executed, abs=1e-3)  # all three steps are measured
    assert tokens > executed
    result = strop.evaluate(run, num_generated=2, max_new_tokens=3)
    assert result.num_generated == (0 if shape == "text" else 2)
    assert result.tuned["nll"] != result.base["nll"]
    session = strop.chat(run, max_new_tokens=3)
    assert isinstance("".join(session.stream("Say 5.")), str)
