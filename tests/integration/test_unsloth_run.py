"""`train.engine: unsloth` through the command line, with transformers, PEFT and TRL in Unsloth's place: beside strop's
own engine on the same recipe, killed and resumed, and where it cannot go on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from strop.run.records import read_samples
from tiny_models import load_oracle
from tiny_runs import environment, metrics, strop, write_recipe
from waiting import PATIENCE, until, until_step

pytestmark = pytest.mark.xdist_group("unsloth")  # what they share takes 20 seconds to make

# 40 rows in steps of 6: the last step has 4, as microbatches of 3 and 1. The gradient norm is near 5, so it is clipped.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_steps": -1,
    "warmup_steps": 2,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "eval_steps": 2,
    "eval_on_start": True,
    "save_steps": 2,
    "max_tokens_per_microbatch": None,
}


@pytest.fixture(scope="module", autouse=True)
def _stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_UNSLOTH_LOADER", "transformers")
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe in float32 without dropout, and its run on each engine."""
    folder = tmp_path_factory.mktemp("engines")
    path = write_recipe(folder, **SETTINGS)
    recipe = json.loads(path.read_text())
    recipe["model"]["precision"] = "float32"
    recipe["lora"]["lora_dropout"] = 0
    path.write_text(json.dumps(recipe))
    for engine in ("strop", "unsloth"):
        done = train(folder, engine, engine=engine)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def train(folder: Path, run: str, *overrides: str, engine: str = "unsloth") -> subprocess.CompletedProcess[str]:
    settings = (f"train.output_dir={folder / run}", *overrides)
    return strop("train", folder / "tiny.yaml", "--engine", engine, *settings, cache=folder / "cache")


def answers(run: Path) -> list[tuple[int, str]]:
    return [(sample.step, sample.text) for sample in read_samples(run / "samples.jsonl")]


def column(run: Path, key: str) -> list[float]:
    return [record[key] for record in metrics(run) if key in record]


def test_every_step_has_the_loss_gradient_and_rate_of_strops_own_engine(workshop: Path) -> None:
    want, got = workshop / "strop", workshop / "unsloth"
    assert len(column(want, "loss")) == 7
    assert column(got, "loss") == pytest.approx(column(want, "loss"), abs=1e-4)
    assert column(got, "grad_norm") == pytest.approx(column(want, "grad_norm"), rel=1e-4)
    for key in ("learning_rate", "num_tokens", "num_loss_tokens"):
        assert column(got, key) == column(want, key), key
    # The control: another order of the same rows is another curve.
    other = train(workshop, "other", "train.seed=7", engine="strop")
    assert other.returncode == 0, other.stderr
    assert column(workshop / "other", "loss") != pytest.approx(column(want, "loss"), abs=1e-1)


def test_held_out_questions_get_the_answers_of_strops_own_engine(workshop: Path) -> None:
    got = answers(workshop / "unsloth")
    assert got == answers(workshop / "strop")
    assert [step for step, _ in got] == [0, 0, 2, 2, 4, 4, 6, 6, 7, 7]
    assert len({text for _, text in got}) > 2  # answers of different models


def test_the_held_out_loss_is_strops_during_the_run_and_after_it(workshop: Path) -> None:
    want, got = column(workshop / "strop", "eval_loss"), column(workshop / "unsloth", "eval_loss")
    assert len(want) == 5
    assert got == pytest.approx(want, abs=1e-4)
    done = strop("evaluate", workshop / "unsloth", "--rows", 0, cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((workshop / "unsloth" / "evaluation.json").read_text())
    assert evaluation["tuned"]["nll"]["value"] == pytest.approx(got[-1], abs=1e-4)
    assert evaluation["base"]["nll"]["value"] == pytest.approx(got[0], abs=1e-4)


def test_the_run_folder_is_strops(workshop: Path) -> None:
    want, got = (metrics(workshop / engine) for engine in ("strop", "unsloth"))
    assert [record.keys() for record in got] == [record.keys() for record in want]
    run = workshop / "unsloth"
    assert {path.name for path in (run / "adapter").iterdir()} == {
        path.name for path in (workshop / "strop" / "adapter").iterdir()
    }
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{i:08d}" for i in (4, 6, 7)]
    assert "engine: unsloth" in (run / "recipe.yaml").read_text()
    manifest = json.loads((run / "run.json").read_text())
    assert (manifest["status"], manifest["num_trainable"]) == ("finished", 3712)
    assert manifest["trl"] == "1.15.0"
    assert sorted(path.name for path in (run / "unsloth").iterdir()) == ["job.json", "worker.log"]


def test_the_adapter_is_strops_and_vanilla_peft_loads_it(workshop: Path) -> None:
    want, got = (
        load_file(workshop / engine / "adapter" / "adapter_model.safetensors") for engine in ("strop", "unsloth")
    )
    assert got.keys() == want.keys()
    worst = max((got[name] - want[name]).abs().max().item() for name in want)
    moved = max(tensor.abs().max().item() for name, tensor in want.items() if "lora_B" in name)
    assert worst < 1e-3 * moved
    base, ids = load_oracle(workshop / "model", torch.float64), torch.arange(100, 130)[None]
    model = peft.PeftModel.from_pretrained(base, workshop / "unsloth" / "adapter").double()
    with torch.no_grad():
        tuned = model(ids).logits
        with model.disable_adapter():
            assert (model(ids).logits - tuned).abs().max() > 1e-3


def start(folder: Path, run: str, *overrides: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "strop", "train", str(folder / "tiny.yaml"), "--engine", "unsloth"]
    command += [f"train.output_dir={folder / run}", *overrides]
    return subprocess.Popen(command, env=environment(folder / "cache"), stdout=subprocess.DEVNULL)


def workers_of(pid: int) -> list[int]:
    """The engine's processes among its children; another one renders templates."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"template_worker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_killed_and_interrupted_it_ends_in_the_same_bits(workshop: Path) -> None:
    """With dropout, whose draws have to be the same, and 8-bit moments, which are tensors and numbers."""
    hard = ("lora.lora_dropout=0.2", "lora.r=128", "train.optim=adamw_8bit", "train.num_train_epochs=2")
    assert train(workshop, "whole", *hard).returncode == 0
    run = workshop / "parts"

    process = start(workshop, "parts", *hard)
    until_step(run, 3, lambda: process.poll() is None)
    (worker,) = workers_of(process.pid)
    process.kill()
    process.wait()
    until(lambda: not is_running(worker), lambda: "the worker outlived its run")

    process = start(workshop, "parts", *hard)
    until_step(run, 7, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "interrupted"

    assert train(workshop, "parts", *hard).returncode == 0
    assert metrics(run) == metrics(workshop / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (workshop / "whole" / name).read_bytes()


def test_a_gradient_that_is_not_finite_updates_nothing_and_names_the_rows(workshop: Path) -> None:
    done = train(workshop, "overflow", "train.learning_rate=1e30", "train.warmup_steps=0")
    assert done.returncode == 5, done.stderr
    assert "step 2: the gradient norm is nan. Nothing was updated" in done.stderr
    assert "train.jsonl:" in done.stderr
    assert [path.name for path in (workshop / "overflow" / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_run_does_not_change_engines(workshop: Path) -> None:
    done = train(workshop, "unsloth", engine="strop")
    assert done.returncode == 4
    assert "train.engine: unsloth -> strop" in done.stderr
