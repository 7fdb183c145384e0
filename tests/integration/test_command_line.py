"""The commands as a user runs them, in processes of their own: what they write, say and return."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from strop.exporting.adapter import load_adapter
from strop.microbatch.tree import Tree
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from strop.run.folder import RunFolder
from tiny_models import load_oracle
from tiny_runs import environment, metrics, strop, write_recipe, write_rows
from waiting import PATIENCE, until_step


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("workshop")
    write_recipe(folder, eval_steps=6)
    done = strop("train", folder / "tiny.yaml", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(workshop: Path, tmp_path: Path) -> Path:
    """The recipe with the run taken away, to be trained again; the token cache is kept."""
    recipe = json.loads((workshop / "tiny.yaml").read_text())
    recipe["train"]["output_dir"] = str(tmp_path / "run")
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    return tmp_path


def test_train_writes_a_whole_run(workshop: Path) -> None:
    run = workshop / "run"
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "report.html", "adapter/adapter_model.safetensors"):
        assert (run / name).exists(), name
    records = metrics(run)
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 13))
    assert [r["step"] for r in records if r["kind"] == "eval"] == [0, 6, 12]
    assert all(r["grad_norm"] > 0 for r in records if r["kind"] == "train")
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["sharing_ratio"] == 1.0  # the recipe has dropout
    assert manifest["data"]["rows"] == 40
    assert sum(manifest["data"]["lengths"]["counts"]) == 40
    assert manifest["data"]["held_out"]["overlap_rows"] == 0
    assert "limit" not in manifest  # of a CPU nothing is published
    assert any("packed" in note or "prefix" in note or "shared" in note for note in manifest["notes"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "12 steps" in page


def test_report_puts_several_runs_on_one_page(workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop / "run", tmp_path / "other")
    page = tmp_path / "both.html"
    done = strop("report", workshop / "run", tmp_path / "other", "-o", page, cache=workshop / "cache")
    assert (done.returncode, done.stdout.strip()) == (0, f"wrote {page}")
    assert "2 runs" in page.read_text(encoding="utf-8")
    done = strop("report", tmp_path, cache=workshop / "cache")
    assert done.returncode == 2
    assert "is not a run folder" in done.stderr


def test_export_rewrites_the_adapter_for_the_other_layout(workshop: Path) -> None:
    cache = workshop / "cache"
    done = strop("export", workshop / "run", "--layout", "fused", "--base", "org/fused", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "read back and checked" in " ".join(done.stdout.split())
    config = json.loads((workshop / "run" / "adapter-fused" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/fused"
    assert "qkv_proj" in config["target_modules"]
    again = strop("export", workshop / "run", "--layout", "fused", cache=cache)
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists" in again.stderr
    shutil.rmtree(workshop / "run" / "adapter-fused")


def test_vanilla_peft_gives_the_same_logits(workshop: Path) -> None:
    folder, ids = workshop / "model", torch.arange(100, 130)
    base = load_oracle(folder, torch.float64)
    with torch.no_grad():
        without = base(ids[None]).logits[0]
    oracle = peft.PeftModel.from_pretrained(base, workshop / "run" / "adapter").double()
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4, lora_alpha=8), seed=1)
    load_adapter(adapter, workshop / "run" / "adapter")
    adapter.decoder.eval()
    with torch.no_grad():
        got = adapter.decoder.logits(adapter.decoder.packed_hidden_states(ids, Tree.of((30,))))
        want = oracle(ids[None]).logits[0]
    assert (got - want).abs().max().item() < 1e-10 * want.abs().max().item()
    assert (without - want).abs().max().item() > 1e-3


def test_a_finished_run_is_left_alone(workshop: Path) -> None:
    adapter = workshop / "run" / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    again = strop("train", workshop / "tiny.yaml", cache=workshop / "cache")
    assert again.returncode == 0
    assert "finished" in again.stdout + again.stderr
    assert adapter.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_run_goes_on_from_there(name: str, workshop: Path, copy: Path) -> None:
    command = [sys.executable, "-m", "strop", "train", str(copy / "tiny.yaml")]
    process = subprocess.Popen(
        command,
        env=environment(workshop / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_step(copy / "run", is_alive=lambda: process.poll() is None)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, errors
    assert metrics(copy / "run")[-1]["step"] < 12, "it does not make the rest first"
    assert "Traceback" not in errors
    assert list((copy / "run" / "checkpoints").glob("step-*"))
    resumed = strop("train", copy / "run", cache=workshop / "cache")
    assert resumed.returncode == 0, resumed.stderr
    train_only = [r for r in metrics(copy / "run") if r["kind"] == "train"]
    assert train_only == [r for r in metrics(workshop / "run") if r["kind"] == "train"]
    weights = "adapter/adapter_model.safetensors"
    assert (copy / "run" / weights).read_bytes() == (workshop / "run" / weights).read_bytes()


@pytest.fixture
def interrupted(workshop: Path, copy: Path) -> Path:
    """A folder whose run stopped at step 3 of 12."""
    shutil.copytree(workshop / "run", copy / "run")
    for step in (copy / "run" / "checkpoints").iterdir():
        if int(step.name.split("-")[1]) > 6:
            shutil.rmtree(step)
    shutil.rmtree(copy / "run" / "adapter")
    RunFolder(copy / "run").update(lambda manifest: replace(manifest, status="interrupted", adapter={}, records={}))
    return copy


def test_a_changed_recipe_is_refused_with_the_difference(interrupted: Path, workshop: Path) -> None:
    refused = strop("train", interrupted / "tiny.yaml", "learning_rate=0.5", cache=workshop / "cache")
    assert refused.returncode == 4
    assert "train.learning_rate" in refused.stderr
    assert "0.01" in refused.stderr
    assert "0.5" in refused.stderr
    allowed = strop("train", interrupted / "tiny.yaml", "logging_steps=5", cache=workshop / "cache")
    assert allowed.returncode == 0, allowed.stderr


def test_changed_data_is_refused(interrupted: Path, workshop: Path) -> None:
    other = write_rows(interrupted / "other.jsonl", 40, offset=1)
    recipe = json.loads((interrupted / "tiny.yaml").read_text())
    recipe["data"]["train_file"] = str(other)
    (interrupted / "tiny.yaml").write_text(json.dumps(recipe))
    refused = strop("train", interrupted / "tiny.yaml", cache=workshop / "cache")
    assert refused.returncode == 4, refused.stderr
    assert "data" in refused.stderr


def test_a_changed_base_model_is_refused(interrupted: Path, workshop: Path) -> None:
    shutil.copytree(workshop / "model", interrupted / "model")
    config = interrupted / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-4}))
    refused = strop(
        "train",
        interrupted / "tiny.yaml",
        f"model.model_name_or_path={interrupted / 'model'}",
        cache=workshop / "cache",
    )
    assert refused.returncode == 4, refused.stderr


def test_two_runs_in_one_folder(workshop: Path, copy: Path) -> None:
    command = [sys.executable, "-m", "strop", "train", str(copy / "tiny.yaml"), "max_steps=100000"]
    first = subprocess.Popen(command, env=environment(workshop / "cache"), stdout=subprocess.DEVNULL)
    try:
        until_step(copy / "run")
        second = strop("train", copy / "tiny.yaml", "max_steps=100000", cache=workshop / "cache")
        assert second.returncode == 2
        assert str(first.pid) in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_evaluate_and_chat(workshop: Path) -> None:
    answers = workshop / "answers.jsonl"
    settings = ("--rows", 3, "--max-new-tokens", 8, "--group-by", "input", "--answers", answers)
    table = strop("evaluate", workshop / "run", *settings, cache=workshop / "cache")
    assert table.returncode == 0, table.stderr
    result = json.loads((workshop / "run" / "evaluation.json").read_text())
    assert result["num_rows"] == 6
    assert result["difference"]["nll"]["high"] < 0
    assert [row["row"] for row in map(json.loads, answers.read_text("utf-8").splitlines())] == [
        f"{workshop / 'validation.jsonl'}:{line}" for line in (1, 3, 5)
    ]
    assert sum(group["num_rows"] for group in result["groups"].values()) == 6
    assert {example["group"] for example in result["examples"]} <= set(result["groups"])
    assert "base" in table.stdout
    assert "tuned" in table.stdout
    answer = strop(
        "chat",
        workshop / "run",
        "--prompt",
        "Say something.",
        "--max-new-tokens",
        4,
        cache=workshop / "cache",
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_an_unknown_group_names_the_keys(workshop: Path) -> None:
    refused = strop("evaluate", workshop / "run", "--group-by", "topic", cache=workshop / "cache")
    assert refused.returncode == 3
    assert "instruction, input, output" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_check_shows_what_is_learned(workshop: Path) -> None:
    shown = strop("check", workshop / "tiny.yaml", cache=workshop / "cache")
    assert shown.returncode == 0, shown.stderr
    for words in ("40", "alpaca", "stop"):
        assert words in shown.stdout


def test_bad_rows_are_all_named_and_can_be_skipped(workshop: Path, copy: Path) -> None:
    rows = write_rows(copy / "rows.jsonl", 12).read_text().splitlines()
    rows[3], rows[7] = '{"instruction": "x", "input": ""}', "{broken"
    (copy / "rows.jsonl").write_text("\n".join(rows) + "\n")
    setting = f"data.train_file={copy / 'rows.jsonl'}"
    refused = strop("train", copy / "tiny.yaml", setting, cache=workshop / "cache")
    assert refused.returncode == 3
    assert "rows.jsonl:4" in refused.stderr
    assert "rows.jsonl:8" in refused.stderr
    assert not (copy / "run" / "adapter").exists()
    skipped = strop("train", copy / "tiny.yaml", setting, "on_bad_row=skip", cache=workshop / "cache")
    assert skipped.returncode == 0, skipped.stderr


def test_runs_lists_them(workshop: Path) -> None:
    listed = strop("runs", workshop, cache=workshop / "cache")
    assert listed.returncode == 0
    assert "finished" in listed.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "no-such-recipe"),
        ("train", "demo", "learning_rat=1"),
        ("evaluate", "no/such/run"),
        ("chat", "no/such/run"),
        ("check",),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = strop(*arguments, cache=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


def test_a_loss_that_is_not_a_number_stops_before_the_update(workshop: Path, copy: Path) -> None:
    # Two steps run, then a learning rate beyond float32's range makes the weights, and so the third loss, infinite.
    stopped = strop("train", copy / "tiny.yaml", "learning_rate=1e38", "max_grad_norm=0", cache=workshop / "cache")
    assert stopped.returncode == 5, stopped.stdout + stopped.stderr
    assert "train.jsonl:" in stopped.stderr
    assert "step" in stopped.stderr
    assert os.listdir(copy / "run" / "checkpoints")
