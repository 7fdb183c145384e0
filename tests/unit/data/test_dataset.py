import json
from pathlib import Path

import pytest

from strop.data.dataset import open_dataset
from strop.errors import DataError
from strop.recipe import DataSection

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"


@pytest.fixture
def section(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "val.jsonl"):
        rows = [json.dumps({"instruction": f"{name} {i}", "output": "a"}) + "\n" for i in range(200)]
        Path(name).write_text("".join(rows))
    return DataSection(train_file="train.jsonl")


def test_format_is_detected_and_said(section):
    dataset = open_dataset(section, SMOLLM2, 128, 42)
    assert (dataset.format, dataset.template.name) == ("alpaca", "chat")
    assert (len(dataset.train), dataset.validation) == (200, None)


def test_validation_file_wins_over_the_split(section):
    changed = {"validation_file": ("val.jsonl",), "validation_split_percentage": 10, "max_eval_samples": 7}
    dataset = open_dataset(section.model_copy(update=changed), SMOLLM2, 128, 42)
    assert (len(dataset.train), len(dataset.validation)) == (200, 7)
    assert dataset.validation.origin(0).file == "val.jsonl"


def test_split_divides_the_training_rows(section):
    dataset = open_dataset(section.model_copy(update={"validation_split_percentage": 20}), SMOLLM2, 128, 42)
    assert len(dataset.train) + len(dataset.validation) == 200
    assert 20 < len(dataset.validation) < 60


def test_missing_validation_file_names_its_key(section):
    section = section.model_copy(update={"validation_file": ("nothing.jsonl",)})
    with pytest.raises(DataError, match=r"data\.validation_file: there is no file nothing.jsonl"):
        open_dataset(section, SMOLLM2, 128, 42)
