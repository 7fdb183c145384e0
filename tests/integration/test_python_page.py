"""docs/python.md does what it says: its snippets, one after the other, on a tiny model."""

import json
import re
from pathlib import Path

import pytest

import strop
from tiny_runs import environment, write_bfloat16_recipe

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("STROP_CACHE", "HF_HUB_OFFLINE", "PYTHONPATH"):
        monkeypatch.setenv(name, environment(tmp_path / "cache")[name])
    monkeypatch.setattr("strop.modal_runs.prices._PATIENCE", 0.0)  # the stored list at once
    recipe = json.loads(write_bfloat16_recipe(tmp_path).read_text())
    recipe["train"]["output_dir"] = "runs/my"
    (tmp_path / "my.yaml").write_text(json.dumps(recipe))
    return tmp_path


def test_the_snippets_run_one_after_the_other(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 9
    names: dict[str, object] = {}
    told = []
    for number, snippet in enumerate(snippets, start=1):
        exec(compile(snippet, f"snippet {number} of docs/python.md", "exec"), names)
        told.append(capsys.readouterr().out)
    recipe, check, train, own, metrics, evaluation, _, export, errors = told
    assert recipe.startswith("0.01 runs/my")
    assert "H200" in check
    assert "step 4/4  loss" in train
    assert "finished" in train
    assert own.startswith("step 0: held-out loss")
    assert "4/4" not in own
    assert re.search(r"base: [\d.]+ now: [\d.]+", metrics)
    assert evaluation.startswith(("+", "-"))
    assert "reading" not in evaluation
    assert "report.html" in export
    assert errors.startswith("2 ")
    assert "train.learning_rat" in errors
    assert (workshop / "runs/my/merged/parity.json").exists()


def test_silence_is_silent_and_its_absence_is_not(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = strop.load_recipe("my.yaml", {"train.max_steps": 1})
    strop.check(recipe, quiet=True)
    run = strop.train(recipe, quiet=True)
    strop.plan(recipe, probing=False, quiet=True)
    assert capsys.readouterr().out == ""
    assert strop.train(recipe).path == run.path
    assert "has already finished" in capsys.readouterr().out
