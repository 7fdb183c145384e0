"""One table of metrics, and everything that lists them."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

import strop
from strop.commands import evaluate as command
from strop.evaluation.result import METRICS, Evaluation, Interval, JudgedAnswer, ScoreSettings
from strop.reporting.scores import score_rows

SOURCE = Path(strop.__file__).parent
PAGE = SOURCE.parents[1] / "docs" / "evaluation.md"
SCORES = {key: Interval(0.5, 0.25, 0.75, 4) for key in METRICS}
RESULT = Evaluation(4, 40, 4, ScoreSettings(), SCORES, SCORES, SCORES, {}, [])


def test_the_terminal_and_pages_list_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    command._print_evaluation(RESULT, 0)
    printed = capsys.readouterr().out
    assert [metric.label for metric in METRICS.values() if metric.label in printed] == [
        metric.label for metric in METRICS.values()
    ]
    rows = score_rows(RESULT)
    assert [row["label"] for row in rows] == [metric.heading for metric in METRICS.values()]
    assert {row["label"] for row in rows if "%" in row["base"]} == {
        metric.heading for metric in METRICS.values() if metric.is_share
    }
    assert score_rows(None) == []


def test_the_documentation_lists_every_metric() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \| (lower|higher) \|$", text, flags=re.MULTILINE)
    assert table == [
        (metric.label.partition(",")[0], "higher" if metric.more_is_better else "lower") for metric in METRICS.values()
    ]
    assert all(f"`{key}`" in text for key in METRICS)


def test_an_answer_has_every_metric_of_answers() -> None:
    assert [each.name for each in fields(JudgedAnswer) if each.name != "text"] == [
        key for key, metric in METRICS.items() if metric.of_answers
    ]


def test_no_other_file_has_labels_of_metrics() -> None:
    labels = {label for metric in METRICS.values() for label in (metric.label, metric.heading) if " " in label}
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in labels
    }
    assert found <= {"evaluation/result.py", "reporting/verdict.py"}  # which has a tile of its own for exact match


def test_an_evaluation_comes_back_from_its_json() -> None:
    assert Evaluation.from_json(RESULT.to_json()) == RESULT
    damaged = RESULT.to_json()
    damaged["base"]["nll"] = {"value": 1.0}
    read = Evaluation.from_json(damaged)
    assert read is not None
    assert "nll" not in read.base
    assert read.tuned == RESULT.tuned
    assert Evaluation.from_json({"base": {"nll": 1.0}, "tuned": {"nll": 0.5}}) is None
