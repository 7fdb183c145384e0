import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.data.dataset import open_dataset
from strop.errors import DataError

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"


@pytest.fixture
def section(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "val.jsonl"):
        rows = [json.dumps({"instruction": f"{name} {i}", "output": "a"}) + "\n" for i in range(200)]
        Path(name).write_text("".join(rows))
    return SimpleNamespace(
        train_file=["train.jsonl"],
        validation_file=[],
        validation_split_percentage=0,
        format="auto",
        template="auto",
        train_on="completion",
        on_bad_row="error",
        max_train_samples=None,
        max_eval_samples=None,
    )


def test_format_is_detected_and_said(section):
    dataset = open_dataset(section, SMOLLM2, 128, 42)
    assert (dataset.format, dataset.format_detected, dataset.template.name) == ("alpaca", True, "chat")
    assert (len(dataset.train), dataset.validation) == (200, None)


def test_validation_file_wins_over_the_split(section):
    section.validation_file, section.validation_split_percentage, section.max_eval_samples = (
        ["val.jsonl"],
        10,
        7,
    )
    dataset = open_dataset(section, SMOLLM2, 128, 42)
    assert (len(dataset.train), len(dataset.validation)) == (200, 7)
    assert dataset.validation.origin(0).file == "val.jsonl"


def test_split_divides_the_training_rows(section):
    section.validation_split_percentage = 20
    dataset = open_dataset(section, SMOLLM2, 128, 42)
    assert len(dataset.train) + len(dataset.validation) == 200
    assert 20 < len(dataset.validation) < 60


def test_missing_validation_file_names_its_key(section):
    section.validation_file = ["nothing.jsonl"]
    with pytest.raises(DataError, match=r"data\.validation_file: there is no file nothing.jsonl"):
        open_dataset(section, SMOLLM2, 128, 42)
