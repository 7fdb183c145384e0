"""One run on two cards: the training of one card, the same bits each time, and one checkpoint however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from strop.run.folder import RunFolder
from strop.run.records import TrainRecord, read_metrics
from tiny_runs import environment, strop, write_bfloat16_recipe
from waiting import PATIENCE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.xdist_group("two cards"),
]
WIDE = {"hidden_size": 256, "intermediate_size": 512}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    path = write_bfloat16_recipe(folder, **WIDE)
    contents = json.loads(path.read_text())
    contents["lora"]["lora_dropout"] = 0
    contents["train"]["max_steps"] = 12
    path.write_text(json.dumps(contents))
    return path


def trained(recipe: Path, name: str, *more: str, gpus: int = 2) -> RunFolder:
    out = recipe.parent / name
    done = strop("train", recipe, f"train.output_dir={out}", f"--gpus={gpus}", *more, cache=recipe.parent / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(out)


def steps(run: RunFolder) -> list[TrainRecord]:
    return [record for record in read_metrics(run.metrics_path) if isinstance(record, TrainRecord)]


@pytest.mark.parametrize("more", [(), ("model.precision=float8",), ("lora.lora_dropout=0.1",)])
def test_two_cards_train_what_one_does(recipe: Path, more: tuple[str, ...]) -> None:
    name = "-".join(more) or "bfloat16"
    one, two, again = (trained(recipe, f"{name}-{i}", *more, gpus=g) for i, g in enumerate((1, 2, 2)))
    want, found = steps(one), steps(two)
    assert [record.loss for record in found] == pytest.approx([record.loss for record in want], rel=2e-2)
    assert found[0].loss == pytest.approx(want[0].loss, rel=2e-3)
    assert min(record.grad_norm for record in found) > 0
    assert [record.num_tokens for record in found] == [record.num_tokens for record in want]
    assert all(len(record.rank_seconds or ()) == 2 for record in found)
    assert weights(two) == weights(again), "the same ranks give the same bits"


def weights(run: RunFolder) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_rank_that_goes_takes_all_along_and_the_run_resumes(recipe: Path, number: signal.Signals) -> None:
    want = trained(recipe, "whole", "train.max_steps=300", "train.save_steps=20")
    out = recipe.parent / f"struck-{number.name}"
    command = (
        "train",
        str(recipe),
        f"train.output_dir={out}",
        "--gpus=2",
        "train.max_steps=300",
        "train.save_steps=20",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "strop", *command],
        env=environment(recipe.parent / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + PATIENCE
    while not (out / "checkpoints").exists() or not list((out / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(rank_of(process.pid, 1), number)
    struck = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert time.monotonic() - struck < 30
    assert "Traceback" not in output, output
    assert strop(*command, cache=recipe.parent / "cache").returncode == 0
    assert weights(RunFolder(out)) == weights(want)


def rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank."""
    for status in Path("/proc").glob("[0-9]*/status"):
        lines = status.read_text().splitlines()
        if any(line.split() == ["PPid:", str(launcher)] for line in lines):
            variables = (status.parent / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                return int(status.parent.name)
    raise AssertionError("no such rank")
