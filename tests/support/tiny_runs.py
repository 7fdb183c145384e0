"""A tiny run that the integration and fault tests start through the command line, as a user would."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from strop.run.records import read_metrics
from tiny_models import write_checkpoint
from waiting import PATIENCE

FIXTURES = Path(__file__).parents[1] / "fixtures"
_WORDS = ["red", "blue", "green", "stone", "river", "cloud", "maple", "lantern", "copper", "violet"]


def write_model(folder: Path) -> Path:
    """A tiny random SmolLM2 with its real tokenizer."""
    write_checkpoint(folder, "smollm2", vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    for file in (FIXTURES / "smollm2-tokenizer").iterdir():
        if file.name != "README.md":
            shutil.copyfile(file, folder / file.name)
    return folder


def write_rows(path: Path, count: int, offset: int = 0) -> Path:
    """Alpaca rows of different lengths."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(offset, offset + count):
            words = " ".join(_WORDS[(i * j) % len(_WORDS)] for j in range(1, 3 + i % 7))
            row = {
                "instruction": f"Say the words of row {i}.",
                "input": words,
                "output": f"Row {i}: {words}.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_recipe(folder: Path, **train: Any) -> Path:
    """A recipe for 12 steps of 4 samples on the tiny model, with whatever `train` changes."""
    settings = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "max_tokens_per_microbatch": 120,
    } | train
    recipe = {
        "model": {"model_name_or_path": str(write_model(folder / "model")), "max_seq_length": 256},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "data": {
            "train_file": str(write_rows(folder / "train.jsonl", 40)),
            "validation_file": str(write_rows(folder / "validation.jsonl", 6, offset=100)),
        },
        "train": settings,
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def write_bfloat16_recipe(folder: Path, **sizes: int) -> Path:
    """The recipe on a model of these sizes as it would be published: in bfloat16, and sure enough of its answers."""
    recipe = write_recipe(folder)
    sizes = {"vocab_size": 49152, "num_hidden_layers": 2} | sizes
    write_checkpoint(folder / "model", "smollm2", gain=1.0, dtype=torch.bfloat16, **sizes)
    return recipe


def environment(cache: Path) -> dict[str, str]:
    """One thread, no hub, a cache of the test's own."""
    source = str(Path(__file__).parents[2] / "src")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
        "STROP_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def strop(*arguments: object, cache: Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "strop", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(cache), check=False)


_ALL = (
    "import contextlib, json, sys\n"
    "from strop.cli import main\n"
    "for arguments in json.load(sys.stdin):\n"
    "    sys.argv = ['strop', *arguments]\n"
    "    with contextlib.suppress(SystemExit): main()\n"
    "    print('NEXT', flush=True)\n"
)


def strop_all(asked: list[list[str]], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command after the other in a folder, in one process, and see that each came to its end."""
    done = subprocess.run(
        [sys.executable, "-c", _ALL],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | variables,
        check=False,
    )
    assert done.stdout.count("NEXT") == len(asked), done.stderr[-3000:]
    return done


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what depends on the clock."""
    timed = {"tokens_per_second", "samples_per_second", "rank_seconds", "dollars"}
    records = read_metrics(run / "metrics.jsonl")  # tolerates the line that is being written
    plain = [{"kind": record.kind, **asdict(record)} for record in records]
    return [{key: value for key, value in record.items() if key not in timed and value is not None} for record in plain]
