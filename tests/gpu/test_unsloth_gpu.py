"""`train.engine: unsloth` on Unsloth itself: its loss curve beside strop's own, from the same rows and the same start.

The checkpoints are random and their tokenizers real; nothing is downloaded.
"""

import importlib.util
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.exporting.adapter import load_adapter
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from strop.run.folder import RunFolder
from tiny_models import write_checkpoint
from tiny_runs import FIXTURES, metrics, strop, write_rows
from waiting import PATIENCE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="needs strop[unsloth]"),
]

SHAPE: dict[str, Any] = {  # wide enough for Unsloth's kernels, and for 8-bit moments to be 8 bits
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STROP_UNSLOTH_LOADER", raising=False)
        yield


def write_model_like(folder: Path, family: str) -> None:
    """A random checkpoint with the tokenizer of its family."""
    tokenizer, vocabulary, ends = {
        "llama": ("smollm2-tokenizer", 49152, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}),
        "phi3-split": ("phi3-tokenizer", 32064, {"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}),
        "phi3": ("phi3-tokenizer", 32064, {"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}),
    }[family]
    kind = "llama2" if family == "llama" else family
    write_checkpoint(folder, kind, vocab_size=vocabulary, **SHAPE, **ends)
    for file in (FIXTURES / tokenizer).iterdir():
        if file.name != "README.md":
            (folder / file.name).write_bytes(file.read_bytes())


def write_recipe_for(folder: Path, family: str) -> Path:
    write_model_like(folder / "model", family)
    recipe = {
        "model": {
            "model_name_or_path": str(folder / "model"),
            "max_seq_length": 256,
            "precision": "bfloat16",
        },
        "lora": {"r": 16},
        "data": {
            "train_file": str(write_rows(folder / "train.jsonl", 160)),
            "validation_file": str(write_rows(folder / "validation.jsonl", 12, offset=500)),
        },
        "train": {"max_steps": 30, "warmup_steps": 3, "learning_rate": 1e-3, "eval_steps": 10, "save_steps": 10},
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe))
    return path


def train(folder: Path, run: str, engine: str, *overrides: str) -> Path:
    out = f"train.output_dir={folder / run}"
    done = strop(
        "train", folder / "tiny.yaml", "--engine", engine, out, *overrides, cache=folder / "cache", timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / run


def column(run: Path, key: str) -> list[float]:
    return [record[key] for record in metrics(run) if key in record]


def apart(a: list[float], b: list[float]) -> float:
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", ["llama", "phi3-split", "phi3"])
def test_in_bfloat16_the_curve_is_strops(family: str, tmp_path: Path) -> None:
    """Rounding moves a loss of 10 by a hundredth (0.006 to 0.010 on a CPU), another order of the rows by half."""
    write_recipe_for(tmp_path, family)
    want, got = train(tmp_path, "strop", "strop"), train(tmp_path, "unsloth", "unsloth")
    other = train(tmp_path, "other", "strop", "train.seed=7")
    noise, control = (
        apart(column(want, "loss"), column(got, "loss")),
        apart(column(want, "loss"), column(other, "loss")),
    )
    print(f"{family}: losses {noise:.5f} apart, with another order {control:.5f}")
    assert noise < 0.05
    assert noise < 0.2 * control
    assert column(got, "loss")[0] == pytest.approx(column(want, "loss")[0], abs=0.05)
    assert column(got, "grad_norm")[0] == pytest.approx(column(want, "grad_norm")[0], rel=0.05)
    assert column(got, "learning_rate") == column(want, "learning_rate")
    assert column(got, "num_loss_tokens") == column(want, "num_loss_tokens")
    assert apart(column(want, "eval_loss"), column(got, "eval_loss")) < 0.05
    samples = [json.loads(line) for line in (got / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [10, 10, 20, 20, 30, 30]
    assert any(sample["text"] for sample in samples)
    adapter = LoraAdapter(load_decoder(tmp_path / "model", torch.float32), LoraSection(r=16), seed=0)
    load_adapter(adapter, got / "adapter")
    manifest = json.loads((got / "run.json").read_text())
    assert manifest["unsloth"]
    assert manifest["num_trainable"] == adapter.num_parameters


def test_the_recipe_of_unsloths_users_trains_and_resumes(tmp_path: Path) -> None:
    """NF4, 8-bit AdamW and Unsloth's checkpointing; cut off in the middle, it goes on with the same losses."""
    write_recipe_for(tmp_path, "phi3-split")
    theirs = ("model.load_in_4bit=true", "train.optim=adamw_8bit", "train.gradient_checkpointing=true")
    whole = train(tmp_path, "whole", "unsloth", *theirs)
    assert column(whole, "loss")[-1] < column(whole, "loss")[0] - 0.1
    # The same run with nothing after step 20: what a machine that was lost leaves behind.
    parts = tmp_path / "parts"
    train(tmp_path, "parts", "unsloth", *theirs)
    for name in ("step-00000030",):
        for file in (parts / "checkpoints" / name).iterdir():
            file.unlink()
        (parts / "checkpoints" / name).rmdir()
    RunFolder(parts).set_status("interrupted")
    train(tmp_path, "parts", "unsloth", *theirs)
    assert column(parts, "loss")[:20] == pytest.approx(column(whole, "loss")[:20], abs=0.05)
    assert apart(column(parts, "loss")[20:], column(whole, "loss")[20:]) < 0.05


@pytest.mark.whole_gpu
def test_out_of_memory_is_exit_6(tmp_path: Path) -> None:
    """All but a few GiB are taken by this process; the batch would need tens."""
    write_recipe_for(tmp_path, "llama")
    taken = torch.empty(torch.cuda.mem_get_info()[0] - (6 << 30), dtype=torch.uint8, device="cuda")
    batch = ("train.per_device_train_batch_size=16384", "train.gradient_accumulation_steps=1", "train.max_steps=1")
    out, cache = f"train.output_dir={tmp_path / 'run'}", tmp_path / "cache"
    done = strop("train", tmp_path / "tiny.yaml", "--engine", "unsloth", out, *batch, cache=cache, timeout=PATIENCE)
    del taken
    assert done.returncode == 6, done.stdout + done.stderr
    assert "train.per_device_train_batch_size" in done.stderr
