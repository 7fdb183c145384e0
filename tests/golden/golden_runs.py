"""Small runs whose results are known to the last bit: `python golden_runs.py cpu|gpu FOLDER` prints them as JSON.

Each run is defined by a recipe and made by `strop.train`, so it stays the same however the code behind it is arranged.
On a CPU the arithmetic is pinned (`PINNED`), so that every x86-64 processor gives the same bits.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMED = {"tokens_per_second", "samples_per_second", "rank_seconds", "dollars", "peak_memory_gib"}
PINNED = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SIZES = {"vocab_size": 49152, "num_hidden_layers": 2}
WIDE = SIZES | {"hidden_size": 64, "intermediate_size": 64}
"""Sizes that NF4 and the GPU's kernels can handle."""


def write_recipe(folder: Path, family: str, sizes: dict[str, int], dtype: str = "float32", gain: float = 3.0) -> Path:
    """A model of the family, SmolLM2's tokenizer, forty rows, six held-out rows, and twelve steps of four samples."""
    import shutil

    import torch

    from tiny_models import write_checkpoint
    from tiny_runs import write_rows

    partial = {"hidden_size": 64} if family == "phi3-partial" else {}
    write_checkpoint(folder / "model", family, gain=gain, dtype=getattr(torch, dtype), **sizes | partial)
    for file in (ROOT / "tests" / "fixtures" / "smollm2-tokenizer").iterdir():
        if file.name != "README.md":
            shutil.copyfile(file, folder / "model" / file.name)
    recipe = {
        "model": {"model_name_or_path": str(folder / "model"), "max_seq_length": 256},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "data": {
            "train_file": str(write_rows(folder / "train.jsonl", 40)),
            "validation_file": str(write_rows(folder / "validation.jsonl", 6, offset=100)),
        },
        "train": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "warmup_steps": 2,
            "save_steps": 3,
            "eval_steps": 4,
            "eval_on_start": False,
            "max_tokens_per_microbatch": 120,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def outcome(run: Path) -> dict[str, Any]:
    """A run's results: hashes of its adapter, metrics and samples, and some of its losses for people to read."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in record.items() if key not in TIMED} for record in records]
    samples = run / "samples.jsonl"
    return {
        "adapter": _hash((run / "adapter" / "adapter_model.safetensors").read_bytes()),
        "metrics": _hash(json.dumps(kept, sort_keys=True).encode()),
        "samples": _hash(samples.read_bytes().replace(str(run.parent).encode(), b"")) if samples.exists() else None,
        "losses": [record["loss"] for record in kept if record["kind"] == "train"][:: len(kept) // 3],
    }


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def train(path: Path, stop_at: int | None = None, **changes: Any) -> Any:
    """Train a recipe with some keys changed; `stop_at` sends SIGTERM after that step."""
    import strop
    from strop.run.reporter import Reporter

    class StopsAt(Reporter):
        def on_step(self, record: Any) -> None:
            if (record["step"] if isinstance(record, dict) else record.step) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = strop.load_recipe(str(path), {key.replace("__", "."): value for key, value in changes.items()})
    return strop.train(recipe, reporter=StopsAt())


def cpu(folder: Path) -> dict[str, Any]:
    """Every family in float32, and one family with each of the options that change a run."""
    import strop
    from tiny_models import FAMILIES

    results = {}
    for family in FAMILIES:
        path = write_recipe(folder / family, family, SIZES)
        results[family] = outcome(train(path).path)
    path = folder / "phi3" / "tiny.yaml"

    def again(name: str, source: Path = path, **changes: Any) -> Any:
        run = train(source, train__output_dir=str(source.parent / name), **changes)
        results[name] = outcome(run.path)
        return run

    again("dropout", lora__lora_dropout=0.1)
    again("checkpointing", train__gradient_checkpointing=True)
    again("adamw-8bit", train__optim="adamw_8bit")
    again("best", train__load_best_model_at_end=True, train__early_stopping_patience=1)
    again("epochs", train__max_steps=-1, train__num_train_epochs=1.3)
    again("all-learned", data__train_on="all")
    nf4 = write_recipe(folder / "nf4", "smollm2", WIDE)
    again("nf4", nf4, model__load_in_4bit=True, train__optim="adamw_8bit")
    resumed = {"train__output_dir": str(folder / "phi3" / "resumed"), "lora__lora_dropout": 0.1}
    try:
        train(path, stop_at=5, **resumed)
    except strop.Interrupted:
        results["resumed"] = outcome(train(path, **resumed).path)
    evaluated = strop.evaluate(strop.Run(folder / "phi3" / "dropout"))
    scores = json.loads((evaluated_path(folder)).read_text())
    for own in ("seal", "run"):  # of this run alone
        scores.pop(own)
    results["evaluation"] = {
        "scores": _hash(json.dumps(scores, sort_keys=True).replace(str(folder), "").encode()),
        "tuned": evaluated.tuned["nll"].value,
    }
    return results


def evaluated_path(folder: Path) -> Path:
    """The path of the evaluation of the run with dropout."""
    return folder / "phi3" / "dropout" / "evaluation.json"


def gpu(folder: Path) -> dict[str, Any]:
    """float8, bfloat16 and NF4: with captured graphs, with fused layers run eagerly, and with the plain decoder."""
    import strop.fused.capture as capture

    results: dict[str, Any] = {}
    path = write_recipe(folder / "gpu", "smollm2", WIDE, "bfloat16", gain=1.0)
    bound = capture.most_captured_tokens
    variants = {"captured": (bound, 0.0), "fused": (lambda parameters: 0, 0.0), "plain": (bound, 0.1)}
    for precision in ("float8", "bfloat16", "nf4"):
        changes: dict[str, Any] = {"model__precision": precision}
        if precision == "nf4":
            changes = {"model__load_in_4bit": True, "train__optim": "adamw_8bit"}
        for variant, (most, dropout) in variants.items():
            capture.most_captured_tokens = most
            name = f"{precision}-{variant}"
            run = train(path, train__output_dir=str(folder / "gpu" / name), lora__lora_dropout=dropout, **changes)
            results[name] = outcome(run.path)
    capture.most_captured_tokens = bound
    return results


def main() -> None:
    """Make the runs and print their results."""
    import torch

    torch.use_deterministic_algorithms(False)
    which, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    os.environ["STROP_CACHE"] = str(folder / "cache")
    results = {"cpu": cpu, "gpu": gpu}[which](folder)
    place = torch.cuda.get_device_name() if which == "gpu" else "x86-64"
    json.dump({"device": place, "torch": torch.__version__, "runs": results}, sys.stdout, indent=1)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    os.environ.update(PINNED)
    main()
