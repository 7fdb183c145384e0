"""strop's training step on Phi-3-mini's exact shape with random weights, compared with the matrix products' limit.

    python benchmarks/throughput.py [--workload census | long | --rows FILE] [--batch 8 128] [--steps 20]
                                    [--precision float8 bfloat16 nf4] [--unshared] [--learn-all] [--profile]
                                    [--checkpointing] [--optim adamw_8bit] [--max-tokens 640] [--json FILE]

Every line is training as in a run: packed microbatches, captured graphs, clipping, AdamW, metrics read one step late.
The timed steps have run twice before, so that each shape has its graph, as after the first minutes of a run. The table
has samples/s and the rows' tokens/s, computed tokens/s (a shared prefix counts once), the share of the matrix-product
rates measured in the same process, peak memory, and losses and gradient norm, which show what was trained. Peak memory
is the most that PyTorch reserved and ("allocated") the most that tensors took, including the first run of each shape,
because PyTorch does not count the tensors of a replayed graph. The recipe that users of QLoRA run, in two microbatches
of four samples:

    python benchmarks/throughput.py --precision nf4 --batch 8 --checkpointing --optim adamw_8bit --max-tokens 640

Floating-point operations are those of the layers' frozen matrices in the forward and the input gradient: 4 per weight
and computed token. With --json the figures also go to a file that peers.py prints in one table with other trainers.
"""

import argparse
import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import report
import workloads
from random_checkpoint import LAYOUTS, PHI3_MINI
from strop.data.store import SampleStore
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, pack
from strop.model.config import DecoderConfig, read_config
from strop.model.lora import LoraAdapter
from strop.model.precision import grow_segments
from strop.model.pretrained.weights import build_decoder, group_modules
from strop.ops.linear import Float8Weight, FrozenWeight, Operand, quantise_rows
from strop.ops.nf4 import Nf4, quantise
from strop.recipe import LoraSection, TrainSection
from strop.training.budget import tokens_that_fit
from strop.training.gradients import choose_gradients
from strop.training.optim import choose_optimizer, learning_rate
from strop.training.step import StepInFlight, StepResult, train_step


def random_adapter(config: DecoderConfig, precision: str) -> LoraAdapter:
    rows = {module: last - first for group in group_modules(config).values() for module, (first, last) in group.items()}
    inputs = {"o_proj": config.num_heads * config.head_dim, "down_proj": config.intermediate_size}
    torch.manual_seed(0)

    def read(name: str) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(config.hidden_size, dtype=torch.bfloat16, device="cuda")
        module = name.split(".")[-2]
        shape = (rows.get(module, config.vocab_size), inputs.get(module, config.hidden_size))
        shape = shape[:1] if name.endswith(".bias") else shape
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda") * 0.02

    def read_nf4(name: str) -> Nf4:
        return quantise(read(name))

    decoder = build_decoder(config, read, precision == "float8", read_nf4 if precision == "nf4" else None)
    return LoraAdapter(decoder, LoraSection(), seed=0)


def product_rate(weight: FrozenWeight, x: Operand) -> float:
    """Operations per second of a frozen product, on random data."""

    def products(count: int) -> None:
        for _ in range(count):
            weight.product(x)
        torch.cuda.synchronize()

    products(5)
    started = time.perf_counter()
    products(50)
    return 50 * 2 * len(x.values) * weight.shape[0] * weight.shape[1] / (time.perf_counter() - started)


def limits(tokens: int = 16384) -> dict[str, float]:
    x, weight = (torch.randn(shape, device="cuda").bfloat16() for shape in ((tokens, 3072), (16384, 3072)))
    return {
        "bfloat16": product_rate(FrozenWeight(weight), Operand(x)),
        "float8": product_rate(Float8Weight(weight), quantise_rows(x)),
    }


class Run:
    """Steps of one batch size on one adapter."""

    def __init__(self, adapter: LoraAdapter, store: SampleStore, options: argparse.Namespace, batch: int) -> None:
        self.section = TrainSection(
            per_device_train_batch_size=batch, gradient_accumulation_steps=1, warmup_steps=2, optim=options.optim
        )
        adapter.decoder.gradient_checkpointing = options.checkpointing
        self.optimizer, self.gradients = choose_optimizer(adapter, self.section), choose_gradients(adapter)
        longest = int(store.lengths.max())
        budget = options.max_tokens or tokens_that_fit(self.gradients, adapter.decoder.device, longest)
        self.steps = [self.batches(store, step, budget, options) for step in range(options.steps)]

    def batches(self, store: SampleStore, step: int, budget: int, options: argparse.Namespace) -> list[Microbatch]:
        order = Order(len(store), self.section.samples_per_step, 1.0, max_steps=10**6, seed=0)
        indices = order.samples(step).tolist()
        samples = [store[i] for i in indices]
        if options.learn_all:
            samples = [replace(sample, learned=sample.learned | True) for sample in samples]
        return pack(samples, indices, budget, share=not options.unshared)

    def launch(self, step: int) -> StepInFlight:
        rate = learning_rate(step, self.section, len(self.steps))
        return train_step(self.gradients, self.optimizer, self.steps[step], rate, self.section.max_grad_norm)

    def all(self) -> list[StepResult]:
        results, in_flight = [], None
        for step in range(len(self.steps)):
            launched = self.launch(step)
            if in_flight:
                results.append(in_flight.result())
            in_flight = launched
        return [*results, in_flight.result()]

    def measure(self) -> tuple[list[StepResult], float]:
        torch.cuda.reset_peak_memory_stats()  # leave out the memory used to find the budget
        first = self.all()[0]
        self.all()
        started = time.perf_counter()
        results = self.all()
        return [first, *results], time.perf_counter() - started


def kernels_of(run: Callable[[], object]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    lines = [f"{total / 1e3:9.2f} ms, all kernels of one step"]
    lines += [f"{e.self_device_time_total / 1e3:9.2f} ms {e.count:5} x {e.key[:90]}" for e in events[:30]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--precision", nargs="+", default=["float8", "bfloat16"], choices=["float8", "bfloat16", "nf4"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward")
    parser.add_argument("--optim", default="adamw_torch", choices=["adamw_torch", "adamw_8bit"])
    parser.add_argument("--max-tokens", type=int, help="of a microbatch (default: what fits)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--unshared", action="store_true", help="compute every sample's prefix again")
    parser.add_argument("--learn-all", action="store_true", help="loss on all tokens")
    parser.add_argument("--profile", action="store_true", help="print the kernels of a step of each line")
    parser.add_argument("--json", type=Path, help="append the figures to this file, a line of JSON each")
    options = parser.parse_args()
    grow_segments()

    workload = options.rows.stem if options.rows else options.workload
    store = workloads.open_workload(workload, options.rows)
    config = read_config(PHI3_MINI | LAYOUTS["split"])
    limit = limits()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; matrix products of 16,384 tokens: "
          + ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limit.items()))  # fmt: skip
    print(f"{len(store):,} rows, {store.num_tokens / len(store):.1f} tokens a row, {store.num_loss_tokens:,} learned")
    for precision, batch in itertools.product(options.precision, options.batch):
        run = adapter = None  # free the last run's memory for the next
        gc.collect()
        torch.cuda.empty_cache()
        adapter = random_adapter(config, precision)
        linears = adapter.decoder.num_base_parameters - 2 * config.vocab_size * config.hidden_size
        run = Run(adapter, store, options, batch)
        (first, *results), seconds = run.measure()
        executed = sum(result.num_executed_tokens for result in results)
        figures = {
            "workload": workload,
            "system": f"strop {precision}"
            + ", no sharing" * options.unshared
            + ", all learned" * options.learn_all
            + ", recomputed" * options.checkpointing
            + ", 8-bit AdamW" * (options.optim == "adamw_8bit"),
            "setting": f"batch {batch}" + (f" by {options.max_tokens} tokens" if options.max_tokens else ""),
            "steps_per_s": options.steps / seconds,
            "samples_per_s": batch * options.steps / seconds,
            "tokens_per_s": sum(result.num_tokens for result in results) / seconds,
            "executed_tokens_per_s": executed / seconds,
            "of_bf16": 4 * linears * executed / seconds / limit["bfloat16"],
            "of_fp8": 4 * linears * executed / seconds / limit["float8"],
            "peak_gib": torch.cuda.max_memory_reserved() / 2**30,
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "loss_first": first.loss,
            "loss_last": results[-1].loss,
            "grad_norm_last": results[-1].grad_norm,
        }
        report.append(options.json, figures)
        print(report.table([figures]), flush=True)
        if options.profile:
            print(kernels_of(lambda run=run: run.launch(0).result()), flush=True)


if __name__ == "__main__":
    main()
