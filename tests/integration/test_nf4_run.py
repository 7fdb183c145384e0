"""A run as users of QLoRA write it: 4-bit weights and 8-bit moments, from the command line, killed and resumed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_runs import environment, metrics, strop, write_recipe
from waiting import until_step


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with the names that Unsloth's users write, and its finished run."""
    folder = tmp_path_factory.mktemp("qlora")
    path = write_recipe(folder, optim="paged_adamw_8bit")
    recipe = json.loads(path.read_text())
    recipe["model"]["load_in_4bit"] = True
    path.write_text(json.dumps(recipe))
    done = strop("train", path, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    for words in ("train.optim='adamw_8bit'", "precision nf4", "model.load_in_4bit"):
        assert words in said, said
    return folder


def again(workshop: Path, out: Path, **changes: object) -> list[object]:
    """Arguments of `strop train` for the same recipe in another folder."""
    return ["train", workshop / "tiny.yaml", f"train.output_dir={out}", *(f"{k}={v}" for k, v in changes.items())]


def same(run: Path, want: Path) -> bool:
    name = "adapter/adapter_model.safetensors"
    return metrics(run) == metrics(want) and (run / name).read_bytes() == (want / name).read_bytes()


def test_what_the_run_says_of_itself(workshop: Path) -> None:
    manifest = json.loads((workshop / "run" / "run.json").read_text())
    assert manifest["precision"] == "nf4"
    losses = [record["loss"] for record in metrics(workshop / "run") if record["kind"] == "train"]
    assert sum(losses[-3:]) < sum(losses[:3])
    config = json.loads((workshop / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workshop / "model")


def test_killed_and_resumed_it_ends_in_the_same_bits(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "strop", *map(str, again(workshop, run))]
    with subprocess.Popen(command, env=environment(workshop / "cache"), stdout=subprocess.DEVNULL) as process:
        until_step(run, 4, lambda: process.poll() is None)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = strop("train", run, cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    assert same(run, workshop / "run")


@pytest.mark.parametrize("change", [{"train.optim": "adamw_torch"}, {"model.load_in_4bit": "false"}], ids=str)
def test_either_choice_changes_the_result_and_cannot_be_changed_on_the_way(
    change: dict[str, object], workshop: Path, tmp_path: Path
) -> None:
    done = strop(*again(workshop, tmp_path / "run", **change), cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    assert not same(tmp_path / "run", workshop / "run")
    refused = strop(*again(workshop, workshop / "run", **change), cache=workshop / "cache")
    assert refused.returncode == 4
    assert next(iter(change)) in refused.stderr


def test_it_is_evaluated_on_the_weights_it_was_trained_on(workshop: Path) -> None:
    done = strop("evaluate", workshop / "run", "--rows", "0", cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    tuned = json.loads((workshop / "run" / "evaluation.json").read_text())["tuned"]["nll"]["value"]
    trained = [record["eval_loss"] for record in metrics(workshop / "run") if record["kind"] == "eval"][-1]
    assert tuned == pytest.approx(trained, rel=1e-5)
