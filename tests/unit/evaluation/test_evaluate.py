"""Base beside tuned on a tiny model, and the answers as files."""

import builtins
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from strop.errors import RecipeError
from strop.evaluation.result import (
    COLUMNS,
    AnswerPair,
    Evaluation,
    JudgedAnswer,
    ScoreSettings,
    check_path,
    write_answers,
)
from strop.evaluation.score import HeldOutQuestion, evaluate
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint
from training_doubles import Rows

GROUPS = ["odd" if i % 2 else "even" for i in range(19)] + ["lonely"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), "smollm2")
    adapter = LoraAdapter(load_decoder(folder, torch.float32), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    store = Rows()
    questions = [
        HeldOutQuestion(i, f"question {i}", store[i].input_ids.tolist(), f"{i} {i + 1}") for i in range(0, 20, 2)
    ]
    settings = ScoreSettings(max_new_tokens=4, numeric_tolerance=0.5)
    return evaluate(
        adapter, store, questions, lambda ids: " ".join(map(str, ids)), frozenset({2}), 64, settings, GROUPS
    )


def test_the_file_is_what_others_read(result: Evaluation) -> None:
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["num_rows"] == 20
    assert data["num_generated"] == 10
    assert data["settings"] == {"max_new_tokens": 4, "numeric_tolerance": 0.5}
    metrics = {"nll", "perplexity", "exact_match", "numeric_match", "token_f1", "stopped"}
    for scores in (data["base"], data["tuned"], data["difference"]):
        assert set(scores) == metrics
        for interval in scores.values():
            assert set(interval) == {"value", "low", "high", "count"}
            assert interval["low"] <= interval["value"] <= interval["high"]
    for metric, interval in data["difference"].items():
        assert interval["value"] == pytest.approx(data["tuned"][metric]["value"] - data["base"][metric]["value"])
    assert data["base"]["nll"]["value"] != data["tuned"]["nll"]["value"]
    assert [example["row"] for example in data["examples"]][:2] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert set(data["examples"][0]["base"]) == {"text", "exact_match", "numeric_match", "token_f1", "stopped"}


def test_groups_are_the_same_scores_of_fewer_rows(result: Evaluation) -> None:
    assert {name: group.num_rows for name, group in result.groups.items()} == {"even": 10, "lonely": 1, "odd": 9}
    even, odd, lonely = (result.groups[name].tuned for name in ("even", "odd", "lonely"))
    assert even["token_f1"] == result.tuned["token_f1"]  # even rows are those that were asked
    assert odd["token_f1"] is None
    assert lonely["nll"] is None
    assert even["nll"]
    assert odd["nll"]
    assert even["nll"].value != odd["nll"].value
    assert {example.group for example in result.examples} == {"even"}


def examples() -> list[AnswerPair]:
    right = JudgedAnswer('a "quoted",\nanswer\u2028', True, None, 1.0, True)
    wrong = JudgedAnswer("", False, False, 0.0, False)
    return [
        AnswerPair("rows.jsonl:1", None, "why?", "ref", wrong, right),
        AnswerPair("r:2", "g", "é", "1", right, wrong),
    ]


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.parquet", lambda path: pyarrow.parquet.read_table(path).to_pylist()),
        ("a.jsonl", lambda path: [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]),
    ],
)
def test_every_answer_comes_back(name: str, read: Any, tmp_path: Path) -> None:
    write_answers(tmp_path / name, examples())
    rows = read(tmp_path / name)
    assert [list(row) for row in rows] == [list(COLUMNS)] * 2
    assert rows[0]["tuned_text"] == 'a "quoted",\nanswer\u2028'
    assert rows[0]["tuned_numeric_match"] is None
    assert rows[0]["base_numeric_match"] is False
    assert [row["group"] for row in rows] == [None, "g"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_csv_keeps_line_ends_and_quotes(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.csv", examples())
    assert read_csv(tmp_path / "a.csv")[0]["tuned_text"] == 'a "quoted",\nanswer\u2028'


@pytest.mark.parametrize(("path", "why"), [("answers.txt", "must end in"), ("nowhere/a.csv", "no folder")])
def test_a_file_that_cannot_be_is_refused(path: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=why):
        check_path(tmp_path / path)


def test_a_missing_pyarrow_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"strop\[parquet\]"):
        check_path(tmp_path / "a.parquet")
