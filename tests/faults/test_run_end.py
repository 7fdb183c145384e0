"""The end of a run: `finished` means verified, and the same command makes whatever a fault left out."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import strop
from known_checkpoints import flip_bit
from strop.app import app
from strop.commands.attempt import StopSignals
from strop.errors import CheckpointError, Interrupted, RecipeError, StorageError
from strop.evaluation import samples
from strop.recipe import Recipe, load_recipe
from strop.run import durable
from strop.run.folder import RunFolder
from strop.run.records import TrainRecord, read_metrics
from strop.run.reporter import Reporter
from tiny_runs import write_recipe

WEIGHTS = "adapter_model.safetensors"


class Told(Reporter):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def has(self, *parts: str) -> bool:
        return any(all(part in line for part in parts) for line in self.lines)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of a finished run."""
    torch.set_num_threads(1)
    samples.MAX_NEW_TOKENS = 4
    folder = tmp_path_factory.mktemp("finished")
    os.environ["STROP_CACHE"] = str(folder / "cache")
    recipe = load_recipe(str(write_recipe(folder, eval_steps=2, save_steps=2, max_steps=4)))
    strop.train(recipe)
    return recipe


@pytest.fixture
def recipe(finished: Recipe, tmp_path: Path) -> Recipe:
    """The same, on a copy of the run."""
    shutil.copytree(finished.output_dir, tmp_path / "run")
    return elsewhere(finished, tmp_path / "run")


def elsewhere(recipe: Recipe, folder: Path, **train: Any) -> Recipe:
    settings = recipe.train.model_copy(update={"output_dir": str(folder), **train})
    return recipe.model_copy(update={"train": settings})


def train(recipe: Recipe) -> Told:
    told = Told()
    strop.train(recipe, reporter=told)
    return told


def adapter(recipe: Recipe) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((recipe.output_dir / "adapter").iterdir())}


def run_json(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.output_dir / "run.json").read_text())
    return found


def is_sound(recipe: Recipe, finished: Recipe) -> bool:
    """Whether a run has all that an undisturbed one has, and nothing else that a fault leaves."""
    folder = recipe.output_dir
    same = adapter(recipe).keys() == adapter(finished).keys()
    same &= adapter(recipe)[WEIGHTS] == adapter(finished)[WEIGHTS]
    left = [path for path in folder.rglob("*") if durable.TEMPORARY in path.name]
    report = (folder / "report.html").read_text(encoding="utf-8")
    return same and not left and report.rstrip().endswith("</html>") and run_json(recipe)["status"] == "finished"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    flip_bit(path, 8 * (path.stat().st_size // 2))


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("adapter", remove),
    (f"adapter/{WEIGHTS}", remove),
    (f"adapter/{WEIGHTS}", flip),
    (f"adapter/{WEIGHTS}", truncate),
    ("adapter/adapter_config.json", flip),
    ("adapter/tokenizer.json", flip),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_adapter_is_refused_and_made_again_with_the_same_bits(
    recipe: Recipe, finished: Recipe, name: str, damage: Callable[[Path], None]
) -> None:
    damage(recipe.output_dir / name)
    run = strop.Run(recipe.output_dir)
    for use in (strop.evaluate, strop.chat, strop.export):
        with pytest.raises(CheckpointError, match="makes the adapter again from its last checkpoint"):
            use(run)  # type: ignore[operator]
    told = train(recipe)
    assert told.has("the adapter is made again from the newest checkpoint")
    assert is_sound(recipe, finished)
    assert (recipe.output_dir / "adapter-damaged").exists() == (name != "adapter"), "nothing of it is lost"
    run.require_adapter()
    assert train(recipe).has("has already finished")


def test_without_adapter_and_checkpoints_nothing_is_claimed_and_nothing_trained(recipe: Recipe) -> None:
    shutil.rmtree(recipe.output_dir / "adapter")
    shutil.rmtree(recipe.output_dir / "checkpoints")
    before = run_json(recipe)
    with pytest.raises(CheckpointError, match="adapter is missing, and no checkpoint is left"):
        train(recipe)
    assert run_json(recipe) == before


@pytest.mark.parametrize("name", ["report.html", "adapter/README.md"])
@pytest.mark.parametrize("damage", [remove, lambda path: os.truncate(path, 0)])
def test_the_same_command_makes_what_a_kill_left_out(
    recipe: Recipe, finished: Recipe, name: str, damage: Callable[[Path], None]
) -> None:
    damage(recipe.output_dir / name)
    assert train(recipe).has("has already finished")
    assert is_sound(recipe, finished)


def test_what_killed_processes_left_is_swept_away(recipe: Recipe, finished: Recipe) -> None:
    for name in ("checkpoints/.tmp-removed-step-00000002", ".tmp-report.html", ".tmp-gguf-q8_0.999999999"):
        (recipe.output_dir / name).mkdir()
    train(recipe)
    assert is_sound(recipe, finished)


def interrupted(recipe: Recipe, folder: Path, after: int = 3) -> Recipe:
    """A run that was stopped after a step, by the terminal that closed."""
    recipe = elsewhere(recipe, folder)

    class HangUp(Reporter):
        def on_step(self, record: TrainRecord) -> None:
            if record.step == after:
                os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match=f"stopped by SIGHUP; step {after} of 4 is saved"):
        strop.train(recipe, reporter=HangUp())
    return recipe


def test_a_closed_terminal_saves_as_ctrl_c_does(finished: Recipe, tmp_path: Path) -> None:
    recipe = interrupted(finished, tmp_path / "run")
    assert train(recipe).has("resuming from step 3 of 4")
    assert is_sound(recipe, finished)


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lost_metrics_are_told_kept_and_shown(finished: Recipe, tmp_path: Path) -> None:
    recipe = interrupted(finished, tmp_path / "run")
    metrics = recipe.output_dir / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(line for line in lines if b'"step": 2,' not in line))
    (recipe.output_dir / "samples.jsonl").unlink()
    said = "metrics.jsonl is not as it was at step 3: nothing is left of step 2"
    assert train(recipe).has(said)
    assert is_sound(recipe, finished)
    assert {record.step for record in read_metrics(metrics)} >= {1, 3, 4}
    lost = run_json(recipe)["lost"]
    assert lost[0] == said
    assert "samples.jsonl is not as it was at step 3" in lost[1]
    report = (recipe.output_dir / "report.html").read_text(encoding="utf-8")
    assert said in report
    assert "nothing of 1 of 4 steps" in report


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("damage", [remove, flip, truncate])
def test_the_report_of_a_finished_run_says_what_was_lost_since(
    recipe: Recipe, name: str, damage: Callable[[Path], None]
) -> None:
    damage(recipe.output_dir / name)
    report = strop.report([strop.Run(recipe.output_dir)]).read_text(encoding="utf-8")
    assert f"{name} is not what run.json says that the run wrote" in report


def test_the_report_says_that_samples_cannot_be_read(recipe: Recipe) -> None:
    samples = recipe.output_dir / "samples.jsonl"
    samples.unlink()
    samples.mkdir()
    report = strop.report([strop.Run(recipe.output_dir)]).read_text(encoding="utf-8")
    assert "samples.jsonl cannot be read: Is a directory." in report


def test_a_changed_figure_in_run_json_is_refused(recipe: Recipe) -> None:
    path = recipe.output_dir / "run.json"
    path.write_text(path.read_text().replace('"num_steps": 4', '"num_steps": 5'))
    with pytest.raises(
        CheckpointError, match=r"run\.json is damaged \(it was changed after strop wrote it\)\. Put it back"
    ):
        train(recipe)


def test_a_run_without_a_checkpoint_says_that_it_begins_again(finished: Recipe, tmp_path: Path) -> None:
    recipe = interrupted(finished, tmp_path / "run")
    shutil.rmtree(recipe.output_dir / "checkpoints")
    assert train(recipe).has("no checkpoint is left of the 3 steps", "beginning again")
    assert is_sound(recipe, finished)
    assert (recipe.output_dir / "samples.jsonl").read_bytes() == (finished.output_dir / "samples.jsonl").read_bytes()


def test_the_checkpoint_of_another_run_is_not_used(finished: Recipe, tmp_path: Path) -> None:
    """Also of one that was made from the same: what it is, only this run's own id says."""
    other, twin = (interrupted(elsewhere(finished, tmp_path, seed=seed), tmp_path / str(seed)) for seed in (7, 42))
    for source, target, fault in ((other, twin, "another run"), (twin, other, "another run")):
        recipe = elsewhere(target, tmp_path / f"{target.train.seed}-copy")
        shutil.copytree(target.output_dir, recipe.output_dir)
        shutil.rmtree(recipe.output_dir / "checkpoints")
        shutil.copytree(source.output_dir / "checkpoints", recipe.output_dir / "checkpoints")
        with pytest.raises(CheckpointError, match=fault):
            train(recipe)


def test_where_run_json_was_lost_only_what_was_made_from_the_same_is_used(finished: Recipe, tmp_path: Path) -> None:
    recipe = interrupted(finished, tmp_path / "run")
    (recipe.output_dir / "run.json").unlink()
    other = elsewhere(recipe, recipe.output_dir, seed=7)
    with pytest.raises(CheckpointError, match=r"of another run: not the same train\.seed"):
        train(other)
    for name in ("run.json", "recipe.yaml"):
        (recipe.output_dir / name).unlink()
    told = train(recipe)
    assert told.has("resuming from step 3")
    assert told.has("run.json was lost")
    assert is_sound(recipe, finished)


def test_edited_stop_tokens_are_refused(finished: Recipe, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished.model.model_name_or_path, model)
    recipe = finished.model_copy(update={"model": finished.model.model_copy(update={"model_name_or_path": str(model)})})
    recipe = interrupted(recipe, tmp_path / "run")
    path = model / "generation_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"eos_token_id": [0, 2, 17]}))
    with pytest.raises(CheckpointError, match="stop tokens: not the content that the run began with"):
        train(recipe)


class FullDisk:
    """`os.write` on a full disk, from the n-th call for files whose path holds a text."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if part in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("part", ["run.lock", "recipe.yaml", "run.json", "state.safetensors", WEIGHTS, "samples"])
def test_a_full_disk_is_one_message_and_the_run_resumes(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    recipe = elsewhere(finished, tmp_path / "run")
    with monkeypatch.context() as patched:
        FullDisk(patched, part)
        with pytest.raises(StorageError, match=r"No space left on device \([\d,]+ bytes are free\)"):
            train(recipe)
    assert RunFolder(recipe.output_dir).status in (None, "interrupted")
    train(recipe)
    assert is_sound(recipe, finished)


@pytest.mark.parametrize("part", ["report.html", "README.md"])
def test_a_report_or_card_that_cannot_be_written_is_told_and_made_by_the_same_command(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    recipe = elsewhere(finished, tmp_path / "run")
    with monkeypatch.context() as patched:
        FullDisk(patched, part)
        assert train(recipe).has(part, "is not written", "No space left")
    train(recipe)
    assert is_sound(recipe, finished)


def test_evaluate_shows_its_figures_whatever_can_be_written(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FullDisk(monkeypatch, "run/")
    answers = tmp_path / "answers.csv"
    done = CliRunner().invoke(app, ["evaluate", str(recipe.output_dir), "--rows", "2", "--answers", str(answers)])
    assert "held-out rows" in done.output
    assert isinstance(done.exception, StorageError)
    assert "evaluation.json cannot be written: No space left" in str(done.exception)
    assert answers.exists()


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_first_step(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strop.commands.attempt.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match=r"a checkpoint and the adapter need [\d,]+ bytes, and 9 are free"):
        train(elsewhere(finished, tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_unfinished_run_has_no_adapter(finished: Recipe, tmp_path: Path) -> None:
    """Also where a folder of that name is there."""
    recipe = interrupted(finished, tmp_path / "run")
    shutil.copytree(finished.output_dir / "adapter", recipe.output_dir / "adapter")
    with pytest.raises(RecipeError, match="has no adapter yet"):
        strop.Run(recipe.output_dir).require_adapter()
