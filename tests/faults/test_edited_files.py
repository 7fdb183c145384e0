"""Files of a run that someone has edited, or that are of another run: said, refused, or not shown."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fault_sweep import COMMANDS, Sweep
from fault_trials import fresh
from tiny_runs import environment
from waiting import PATIENCE


def page(folder: Path) -> str:
    return (folder / "run/report.html").read_text("utf-8")


@pytest.mark.parametrize("command", ["train, finished", "evaluate", "export", "chat"])
def test_an_edited_recipe_of_a_run_is_said(sweep: Sweep, tmp_path: Path, command: str) -> None:
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    with (folder / "run/recipe.yaml").open("a") as file:
        file.write("# mine\n")
    answer = sweep.server.run(folder, COMMANDS[command].arguments)
    assert answer.status == 0, answer.output
    assert "recipe.yaml was changed after the run began" in " ".join(answer.output.split())


def test_a_report_says_that_the_recipe_was_edited(sweep: Sweep, tmp_path: Path) -> None:
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    assert "was changed after" not in page(folder)
    recipe = folder / "run/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert sweep.server.run(folder, ("report", "run")).status == 0
    assert "recipe.yaml was changed after the run began" in page(folder)


def test_figures_that_someone_has_edited_are_not_shown(sweep: Sweep, tmp_path: Path) -> None:
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    path = folder / "run/evaluation.json"
    assert path.exists()
    contents = json.loads(path.read_bytes())
    contents["tuned"]["nll"]["value"] = 0.125
    path.write_text(json.dumps(contents))
    assert sweep.server.run(folder, ("report", "run")).status == 0
    assert "it was changed after strop wrote it" in page(folder)


def test_an_evaluation_of_another_run_is_not_shown(sweep: Sweep, tmp_path: Path) -> None:
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    shutil.copy(sweep.begin("other") / "run/evaluation.json", folder / "run/evaluation.json")
    assert sweep.server.run(folder, ("report", "run")).status == 0
    assert "evaluation.json is of another run" in page(folder)


def test_an_adapter_stays_where_it_is_if_all_checkpoints_are_of_another_run(sweep: Sweep, tmp_path: Path) -> None:
    """It was set aside before anyone knew that nothing could be made in its place."""
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    shutil.rmtree(folder / "run/checkpoints")
    shutil.copytree(sweep.begin("other") / "run/checkpoints", folder / "run/checkpoints")
    weights = folder / "run/adapter/adapter_model.safetensors"
    damaged = weights.read_bytes()[:-1] + b"\x55"
    weights.write_bytes(damaged)
    answer = sweep.server.run(folder, COMMANDS["train"].arguments)
    assert answer.status == 4, answer.output
    assert "is not what the run wrote" in " ".join(answer.output.split())
    assert "of another run" in " ".join(answer.output.split())
    assert weights.read_bytes() == damaged
    assert not (folder / "run/adapter-damaged").exists()


@pytest.mark.parametrize("command", ["train, finished", "evaluate", "report", "runs", "chat"])
def test_a_manifest_without_progress(sweep: Sweep, tmp_path: Path, command: str) -> None:
    """As an older strop's, or one that someone has cut down; without its seal, which an older one has not."""
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    path = folder / "run/run.json"
    contents = json.loads(path.read_bytes())
    del contents["progress"], contents["seal"]
    path.write_text(json.dumps(contents))
    answer = sweep.server.run(folder, COMMANDS[command].arguments)
    assert answer.status == 0, answer.output
    assert "Traceback" not in answer.output


def test_report_watch_whose_reader_has_gone_serves_on(sweep: Sweep, tmp_path: Path) -> None:
    """As `strop report --watch run | head -c 1`."""
    folder = fresh(tmp_path / "trial", sweep.begin("finished"))
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "strop", "report", "run", "--watch"],
        cwd=folder,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder / "cache"),
    )
    os.close(write_end)
    first = os.read(read_end, 1)
    os.close(read_end)
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    assert first
    assert (process.returncode, "Traceback" in said) == (-15, False), said
