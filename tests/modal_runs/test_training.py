"""Real training in the fake's containers: preempted, killed and tried again, it ends in the bits of a local run."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fake_modal import FakeModal, Task
from tiny_runs import metrics, strop, write_recipe, write_rows
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


@pytest.mark.slow
@pytest.mark.program("on_two_gpus.py")
def test_a_container_with_two_gpus_trains_on_both(modal: FakeModal, start: Start, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, save_steps=2, max_steps=24)
    process = start("train", recipe, "modal.gpu=H100:2", "--on", "modal")
    modal.preempt(wait_for_step(modal, 1, 5), signal.SIGINT)
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + errors
    assert len(modal.tasks) == 2
    assert out.count("resuming from step") == 1
    assert out.count("divided among 2 ranks") == 2
    steps = [record for record in metrics(tmp_path / "run") if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 25))


@pytest.mark.slow
def test_a_mixture_with_a_template_of_its_own_trains_there_as_here(client: Client, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, max_steps=6)
    (tmp_path / "parts").mkdir()
    for number in range(3):
        write_rows(tmp_path / "parts" / f"{number}.jsonl", 4, offset=50 + 4 * number)
    (tmp_path / "documents.json").write_text(json.dumps([{"body": f"Once there was a {i}."} for i in range(9)]))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    (tmp_path / "mine.jinja").write_text(template + "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}")
    contents = json.loads(recipe.read_text())
    contents["data"] = {
        "train_file": [
            {"path": str(tmp_path / "train.jsonl"), "max_samples": 10},
            {"path": str(tmp_path / "parts" / "*.jsonl"), "repeat": 1.5},
            {"path": str(tmp_path / "documents.json"), "columns": {"text": "body"}, "split": "[20%:]"},
        ],
        "validation_file": {"path": str(tmp_path / "validation.jsonl"), "split": "[:3]"},
        "chat_template": str(tmp_path / "mine.jinja"),
        "system": "Be brief.",
    }
    recipe.write_text(json.dumps(contents))
    local = strop("train", recipe, f"train.output_dir={tmp_path / 'local'}", cache=tmp_path / "cache")
    assert local.returncode == 0, local.stderr
    done = client("train", recipe, "--on", "modal")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    assert (run / WEIGHTS).read_bytes() == (tmp_path / "local" / WEIGHTS).read_bytes()
    sources = json.loads((run / "run.json").read_text())["data"]["sources"]
    assert [source["epoch_samples"] for source in sources] == [10, 18, 7]
