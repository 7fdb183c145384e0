"""How fast other trainers are on strop's rows, labels, model shape and LoRA: Unsloth at its best, and TRL with Liger.

    python benchmarks/peers.py --json peers.jsonl [--workload census | long | --rows FILE] [--systems unsloth trl]

Every trainer runs its own SFTTrainer, in a process of its own, on the token ids and labels that strop trains on, in
strop's order, from a checkpoint of Phi-3-mini's exact shape with random weights. Times are those of whole optimizer
steps after a warm-up. Failures are reported, not hidden, and the other settings continue.

To find each system's best setting, this tries padded batches (`--batch`, in rows of about 150 tokens; longer rows make
smaller batches), the same without padding, and packing to 2,048 tokens; without gradient checkpointing, with
FlashAttention from torch (flash_attn_from_torch.py) and torch's fused AdamW. `unsloth-recipe` is what users run: NF4,
4 x 2, Unsloth's checkpointing, 8-bit AdamW. For strop in the same table, first run throughput.py --json with the same
file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import flash_attn_from_torch
import report
import workloads
from strop.data.store import SampleStore
from strop.recipe import LoraSection, TrainSection

HERE = Path(__file__).parent
TRAINABLE = 29_884_416  # r=16 on all seven projections of Phi-3-mini
TYPICAL_TOKENS = 150  # in the rows that --batch assumes
TRAIN_KEYS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm")
TRAIN_KEYS += ("adam_beta1", "adam_beta2", "adam_epsilon")
TRAIN = TrainSection(warmup_steps=2).model_dump(include=set(TRAIN_KEYS))  # as in throughput.py
SYSTEMS = ("unsloth", "trl", "unsloth-recipe", "unsloth-fp8")
MODES = ("padding-free", "packed", "padded", "recipe")


def settings_of(system: str, batches: list[int], rows: list[int], attention: str) -> list[dict[str, Any]]:
    """The settings to try with a system, most promising first, because the time may run out."""

    def setting(mode: str, batch: int, **other: Any) -> dict[str, Any]:
        names = {"packed": f"packed {batch} x {workloads.MAX_SEQ_LENGTH}", "recipe": "4 x 2"}
        name = names.get(mode, f"{mode} {batch}")
        best = {"accumulation": 1, "checkpointing": False, "optim": "adamw_torch_fused", "attention": attention}
        return {"name": name, "mode": mode, "batch": batch, **best, **other}

    middle = batches[(len(batches) - 1) // 2]
    padded = [setting("padded", batch) for batch in sorted(batches, key=lambda batch: abs(batch - middle))]
    no_padding = [setting("padding-free", batch) for batch in dict.fromkeys((middle, batches[-1]))]
    packed = [setting("packed", batch) for batch in rows]
    if system == "unsloth":
        return [padded[0], packed[0], no_padding[0], *padded[1:], *packed[1:], *no_padding[1:]]
    if system == "unsloth-fp8":
        return [padded[0], packed[0]]
    if system == "unsloth-recipe":
        return [setting("recipe", 4, accumulation=2, checkpointing="unsloth", optim="adamw_8bit")]
    sdpa = setting("padded", middle, attention="sdpa")
    return [padded[0], packed[0], sdpa | {"name": f"{sdpa['name']}, sdpa"}, *padded[1:]]


def write_rows(path: Path, store: SampleStore, count: int) -> None:
    rows = list(workloads.stream(store, count))
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids, labels = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    np.savez(path, ids=ids, labels=labels, offsets=offsets)


def make_model(folder: Path, layers: int) -> None:
    """Write a checkpoint of the shape that all trainers load fastest: separate projections.

    No row reaches the sliding window, so it is removed: attention stays the same, and no trainer pays for a mask.
    """
    if not (folder / "config.json").exists():
        command = [sys.executable, str(HERE / "random_checkpoint.py"), "--out", str(folder), "--layers", str(layers)]
        subprocess.run(command, check=True)
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"sliding_window": None, "dtype": "bfloat16"}
        (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


def run_system(job: dict[str, Any], timeout: float, scratch: Path) -> list[dict[str, Any]]:
    """The results of one system's process, with a line for the setting at which it failed, if it did."""
    name = job["system"]
    job |= {"results": str(scratch / f"{name}.jsonl"), "scratch": str(scratch), "deadline": time.time() + timeout - 20}
    path, log = scratch / f"{name}.json", scratch / f"{name}.log"
    path.write_text(json.dumps(job), "utf-8")
    shim = [str(scratch / "flash_attn")] if job["flash"] else []
    inherited = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*shim, *inherited]),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.time()
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, str(HERE / "peer_worker.py"), str(path)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=scratch)
        try:
            failure = f"exit status {code}" if (code := process.wait(timeout)) else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failure = f"stopped after {timeout:.0f} s"
    results = report.read(Path(job["results"]))
    tried = {result["setting"] for result in results}
    if failure:
        tail = log.read_text("utf-8", errors="replace")[-3000:]
        left = [setting["name"] for setting in job["settings"] if setting["name"] not in tried]
        at = left[0] if left else "end"
        results.append({"workload": job["workload"], "system": name, "setting": at, "log": tail, "error": failure})
    print(f"{name}: {len(results)} settings in {time.time() - started:.0f} s {failure}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--json", type=Path, required=True, help="append a line for each setting to this file")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["unsloth", "trl", "unsloth-recipe"])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 110, 128, 256])
    parser.add_argument("--packed", type=int, nargs="+", default=[8, 16], help="packed rows in a batch")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="try these alone")
    parser.add_argument("--attention", choices=("flash", "sdpa"), default="flash")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=360, help="for all systems together")
    parser.add_argument("--logs", type=Path, help="keep each system's output in this folder")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "strop-random")
    parser.add_argument("--layers", type=int, default=32, help="fewer, to try the script on a small machine")
    arguments = parser.parse_args()
    started = time.time()

    workload = arguments.rows.stem if arguments.rows else arguments.workload
    store = workloads.open_workload(workload, arguments.rows)
    mean = store.num_tokens / len(store)
    batches = sorted({max(1, batch // max(1, round(mean / TYPICAL_TOKENS))) for batch in arguments.batch})
    print(f"{workload}: {len(store):,} rows, {mean:.1f} tokens a row; batches {batches}", flush=True)
    make_model(arguments.model, arguments.layers)

    with tempfile.TemporaryDirectory(prefix="strop-peers-") as folder:
        scratch = Path(folder)
        flash_attn_from_torch.install(scratch / "flash_attn")
        total = arguments.warmup + arguments.steps + 2
        packed = max(arguments.packed) * workloads.MAX_SEQ_LENGTH / mean * 1.1
        write_rows(scratch / "rows.npz", store, int(total * max(batches[-1], packed, 8)))
        for number, system in enumerate(arguments.systems):
            left = arguments.seconds - (time.time() - started)
            reserve = 40 * (len(arguments.systems) - number - 1)
            settings = settings_of(system, batches, arguments.packed, arguments.attention)
            job = {
                "workload": workload,
                "system": system,
                "settings": [setting for setting in settings if setting["mode"] in arguments.modes],
                "model": str(arguments.model.resolve()),
                "rows": str(scratch / "rows.npz"),
                "flash": arguments.attention == "flash",
                "steps": arguments.steps,
                "warmup": arguments.warmup,
                "max_length": workloads.MAX_SEQ_LENGTH,
                "lora": {"r": LoraSection().r, "lora_alpha": LoraSection().lora_alpha},
                "train": TRAIN,
                "trainable": TRAINABLE * arguments.layers // 32,
            }
            for result in run_system(job, max(60.0, left - reserve), scratch):
                report.append(arguments.json, result)
                if "error" in result:
                    print(
                        f"{result['system']}, {result['setting']}: {result['error'][-1500:]}\n{result.get('log', '')}"
                    )
            if arguments.logs:
                arguments.logs.mkdir(parents=True, exist_ok=True)
                log = (scratch / f"{system}.log").read_text("utf-8", errors="replace")
                (arguments.logs / f"{workload}-{system}.log").write_text(log, "utf-8")
    print(report.table(report.read(arguments.json)))


if __name__ == "__main__":
    main()
