"""What a person types wrong, and what `strop runs` says of what is there."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import strop
from run_folders import write_run
from strop.app import app
from strop.errors import RecipeError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "runs" / "census", status="finished", num_steps=30)


@pytest.mark.parametrize(
    ("records", "adapter_step", "want"),
    [
        ([(0, 1.1824)], None, "1.1824 (base)"),
        ([(0, 1.1824), (15, 0.5), (30, 0.75)], None, "1.1824 (base) -> 0.7500"),
        ([(0, 1.1824), (15, 0.5), (30, 0.75)], 15, "1.1824 (base) -> 0.5000"),
        ([(30, 0.75)], 30, "0.7500"),
    ],
)
def test_runs_shows_base_and_adapter(
    folder: Path, records: list[tuple[int, float]], adapter_step: int | None, want: str
) -> None:
    lines = [json.dumps({"kind": "eval", "step": step, "eval_loss": loss}) for step, loss in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(manifest | {"adapter_step": adapter_step}))
    shown = CliRunner().invoke(app, ["runs"], env={"COLUMNS": "100"}).output
    line = next(line for line in shown.splitlines() if line.startswith("runs/census"))
    assert "finished" in line
    assert f" {want} " in line
    assert "1m00s" in line


def test_an_empty_folder_says_how_there_will_be_runs(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shown = CliRunner().invoke(app, ["runs", str(tmp_path / "runs")]).output
    assert "`strop train RECIPE` makes one" in " ".join(shown.split())


@pytest.mark.parametrize("command", [strop.chat, strop.evaluate, lambda run: strop.report([run]), strop.export])
@pytest.mark.usefixtures("folder")
def test_a_run_that_is_misspelt_names_the_one_that_is_there(command) -> None:
    with pytest.raises(RecipeError, match="did you mean runs/census"):
        command(strop.Run(Path("runs/cenus")))
