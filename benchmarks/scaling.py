"""Steps per second of one run on 1, 2, 4 and 8 GPUs of this machine: weak and strong, with each rank's own time.

    python benchmarks/scaling.py [--ranks 1 2 4 8] [--shape phi3-mini | qwen3-4b] [--precision float8]
                                 [--workload census | long | --rows FILE] [--per-gpu 128] [--in-all 512]
                                 [--steps 20] [--json FILE]

Each number of ranks is a run of its own under torchrun, with the engine, the exchange between ranks and the order of
rows that `strop train` has; weights are random. The timed steps have run twice before. "weak" gives each GPU the same
number of samples, "strong" divides one number among them. `wait` is the part of a step in which the fastest rank waits
for the slowest, and `sum` the time of one sum of the gradient over all ranks, alone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

import report
import workloads
from random_checkpoint import LAYOUTS, PHI3_MINI
from strop.model.config import read_config
from strop.model.precision import grow_segments
from strop.parallel.join import meet
from strop.parallel.place import here
from strop.parallel.team import Team
from strop.recipe import TrainSection
from strop.training.engine import StropEngine
from strop.training.optim import learning_rate
from strop.training.ranks import LeadingEngine, obey
from strop.training.step import StepResult
from throughput import random_adapter

QWEN3_4B = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SHAPES = {"phi3-mini": PHI3_MINI | LAYOUTS["split"], "qwen3-4b": QWEN3_4B}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shape", choices=SHAPES, default="phi3-mini")
    parser.add_argument("--precision", default="float8", choices=["float8", "bfloat16"])
    parser.add_argument("--per-gpu", type=int, nargs="*", default=[128], help="samples a step and GPU (weak)")
    parser.add_argument("--in-all", type=int, nargs="*", default=[], help="samples a step (strong)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="append the figures to this file, a line of JSON each")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    workloads.open_workload(options.rows.stem if options.rows else options.workload, options.rows)  # made once
    for ranks in options.ranks:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        subprocess.run([*torchrun, *sys.argv, "--worker"], check=True)


def work(options: argparse.Namespace) -> None:
    """One rank."""
    place = here()
    meeting = meet(place, "start again")
    grow_segments()
    store = workloads.open_workload(options.rows.stem if options.rows else options.workload, options.rows)
    team = meeting.form({})
    adapter = random_adapter(read_config(SHAPES[options.shape]), options.precision)
    batches = [("weak", each * team.size) for each in options.per_gpu] + [("strong", each) for each in options.in_all]
    for kind, batch in batches:
        section = TrainSection(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            warmup_steps=2,
            max_steps=3 * options.steps,
            report_to=(),
        )
        torch.cuda.reset_peak_memory_stats()
        engine = StropEngine(adapter, store, section, team=team)
        if place.leads:
            figures = measured(LeadingEngine(engine, team), team, section, options.steps)
            team.tell("end", None)
        else:
            obey(team, engine, lambda: None)
            figures = {}
        seconds_of_sum = time_of_sum(team, adapter.flat)
        if place.leads:
            workload = options.rows.stem if options.rows else options.workload
            line = {
                "workload": workload,
                "system": f"strop {options.precision}, {options.shape}, {team.size} GPU",
                "setting": f"{kind}, batch {batch}",
                "ranks": team.size,
                **figures,
                "sum_ms": 1e3 * seconds_of_sum,
                "microbatch_tokens": engine.max_tokens,
            }
            report.append(options.json, line)
            print(report.table([line]))
            shown = ("mean_wait", "rank_seconds", "sum_ms", "microbatch_tokens", "peak_gib")
            print(json.dumps({key: line[key] for key in shown}), flush=True)
        del engine
        torch.cuda.empty_cache()


def measured(engine: LeadingEngine, team: Team, section: TrainSection, steps: int) -> dict[str, object]:
    """The figures of rank 0: the same steps three times, the last time on the clock."""

    def all_steps() -> list[StepResult]:
        results, in_flight = [], None
        for step in range(steps):
            launched = engine.launch(step, learning_rate(step, section, 3 * steps), lambda: None)
            if in_flight:
                results.append(in_flight.result())
            in_flight = launched
        assert in_flight is not None
        return [*results, in_flight.result()]

    first = all_steps()[0]
    all_steps()
    started = time.perf_counter()
    results = all_steps()
    seconds = time.perf_counter() - started
    ranks = [result.rank_seconds or (result.seconds,) for result in results]
    return {
        "steps_per_s": steps / seconds,
        "samples_per_s": sum(result.num_samples for result in results) / seconds,
        "tokens_per_s": sum(result.num_tokens for result in results) / seconds,
        "executed_tokens_per_s": sum(result.num_executed_tokens for result in results) / seconds,
        "mean_wait": sum(1 - min(each) / max(each) for each in ranks) / steps,
        "rank_seconds": [sum(each) / steps for each in zip(*ranks, strict=True)],
        "peak_gib": max(result.peak_memory_gib or 0.0 for result in results),
        "loss_first": first.loss,
        "loss_last": results[-1].loss,
        "grad_norm_last": results[-1].grad_norm,
    }


def time_of_sum(team: Team, like: torch.Tensor) -> float:
    """Seconds of one sum of a gradient over all ranks."""
    grad = torch.zeros_like(like)
    for _ in range(3):
        team.sum_up(grad)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        team.sum_up(grad)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / 10


if __name__ == "__main__":
    main()
