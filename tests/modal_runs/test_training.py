"""Real training in the fake's containers: preempted, killed and tried again, it ends in the bits of a local run."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_modal import FakeModal, Task
from tiny_runs import metrics, strop, write_recipe
from waiting import PATIENCE

WEIGHTS = "adapter/adapter_model.safetensors"
Start = Callable[..., "subprocess.Popen[str]"]
Client = Callable[..., "subprocess.CompletedProcess[str]"]


def wait_for_step(modal: FakeModal, number: int, step: int) -> Task:
    """Wait until the container of this number has made a step."""

    def arrived() -> Task | None:
        if len(modal.tasks) < number:
            return None
        task = list(modal.tasks.values())[number - 1]
        run = next(task.runs.glob("*/run"), None)
        done = run is not None and any(record["step"] >= step for record in metrics(run))
        return task if done and f"attempt {number} " in modal.output() else None

    return modal.wait_for(arrived)


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_bits_of_one_that_was_not(
    modal: FakeModal, start: Start, client: Client, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, save_steps=2, max_steps=40)
    local = strop("train", recipe, f"train.output_dir={tmp_path / 'local'}", cache=tmp_path / "cache")
    assert local.returncode == 0, local.stderr
    process = start("train", recipe, "--on", "modal")
    modal.preempt(wait_for_step(modal, 1, 5), signal.SIGINT)  # told to end: saves
    modal.preempt(wait_for_step(modal, 2, 15), signal.SIGKILL)  # gone at once, and with it what was not committed
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors
    assert len(modal.tasks) == 3
    assert out.count("resuming from step") == 2
    run = tmp_path / "run"
    assert (run / WEIGHTS).read_bytes() == (tmp_path / "local" / WEIGHTS).read_bytes()
    assert metrics(run) == metrics(tmp_path / "local")
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")  # and not its place on the Volume
    evaluated = client("evaluate", "run", "--rows", 1, "--max-new-tokens", 2)
    assert evaluated.returncode == 0, evaluated.stderr
