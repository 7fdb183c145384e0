"""strop's training step on Phi-3-mini's exact shape with random weights, beside the limit of the matrix products.

    python benchmarks/throughput.py [--workload census | long | --rows FILE] [--batch 8 128] [--steps 20] [--profile]

For each batch, first with the ops in plain PyTorch and then with the Triton kernels, on the same weights and rows:
samples/s, real tokens/s, the share of the bf16 matrix-product rate measured in the same process, peak memory, and the
first and last loss with the gradient norm, which show that the same was trained. Floating-point operations are those of
the frozen matrices, forward and input gradient, and nothing else: 4 for each weight and token. With --json they also
go to a file that peers.py prints in one table with other trainers.
"""

import argparse
import gc
import importlib
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

import report
import workloads
from random_checkpoint import LAYOUTS, PHI3_MINI
from strop.data.pack import collate, pack
from strop.data.sampler import step_samples
from strop.data.store import SampleStore
from strop.model.families import DecoderConfig, read_config
from strop.model.lora import LoraAdapter
from strop.model.weights import build_decoder, group_modules
from strop.recipe import LoraSection, TrainSection
from strop.train.budget import tokens_per_microbatch
from strop.train.optim import FlatAdamW, learning_rate
from strop.train.step import StepResult, train_step

WARMUP = 3
rms_norm, rotary, swiglu = (importlib.import_module(f"strop.ops.{name}") for name in ("rms_norm", "rotary", "swiglu"))


@contextmanager
def plain_ops() -> Iterator[None]:
    """The ops without their kernels, for the comparison."""
    with ExitStack() as stack:
        for op in (rms_norm, rotary, swiglu):
            stack.enter_context(patch.object(op, "kernels_for", lambda x: None))
        yield


def random_adapter(config: DecoderConfig, device: str) -> LoraAdapter:
    rows = {module: last - first for group in group_modules(config).values() for module, (first, last) in group.items()}
    inputs = {"o_proj": config.num_heads * config.head_dim, "down_proj": config.intermediate_size}

    torch.manual_seed(0)

    def read(name: str) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(config.hidden_size, dtype=torch.bfloat16, device=device)
        module = name.split(".")[-2]
        shape = (rows.get(module, config.vocab_size), inputs.get(module, config.hidden_size))
        return torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02

    return LoraAdapter(build_decoder(config, read), LoraSection(), seed=0)


def gemm_rate(tokens: int = 16384) -> float:
    """bf16 operations a second at the largest projection's shape, on random data."""
    x, weight = (torch.randn(s, device="cuda").bfloat16() for s in ((tokens, 3072), (16384, 3072)))
    for _ in range(5):
        x @ weight.t()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(50):
        x @ weight.t()
    torch.cuda.synchronize()
    return 50 * 2 * tokens * 3072 * 16384 / (time.perf_counter() - started)


class Run:
    """Steps of one batch size on one adapter."""

    def __init__(self, adapter: LoraAdapter, store: SampleStore, batch: int, steps: int) -> None:
        self.section = TrainSection(per_device_train_batch_size=batch, gradient_accumulation_steps=1, warmup_steps=2)
        self.adapter, self.store, self.steps = adapter, store, steps
        self.optimizer = FlatAdamW(adapter, self.section)
        self.budget = tokens_per_microbatch(adapter.decoder, int(store.lengths.max()))

    def step(self, step: int) -> StepResult:
        indices = step_samples(step, len(self.store), self.section.samples_per_step, 1.0, 10**6, 0).tolist()
        groups = pack([int(self.store.lengths[i]) for i in indices], self.budget)
        batches = [collate([self.store[indices[i]] for i in group], group) for group in groups]
        rate = learning_rate(step, self.section, WARMUP + self.steps)
        return train_step(self.adapter.decoder, self.optimizer, batches, rate, self.section.max_grad_norm)

    def measure(self) -> tuple[list[StepResult], float]:
        warm = [self.step(i) for i in range(WARMUP)]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        results = [self.step(WARMUP + i) for i in range(self.steps)]
        torch.cuda.synchronize()
        return [*warm[:1], *results], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads.add_arguments(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="print the kernels of one step of the last batch")
    parser.add_argument("--json", type=Path, help="append the figures to this file, a line of JSON each")
    arguments = parser.parse_args()

    workload = arguments.rows.stem if arguments.rows else arguments.workload
    store = workloads.open_workload(workload, arguments.rows)
    config = read_config(PHI3_MINI | LAYOUTS["split"])
    limit = gemm_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; bf16 matrix products {limit / 1e12:.0f} TFLOP/s")
    print(f"{len(store):,} rows, {store.num_tokens / len(store):.1f} tokens a row, {store.num_loss_tokens:,} learned")
    print("ops     batch  steps/s  samples/s    tok/s  of bf16 limit  peak GiB  loss first..last  gradient norm")
    for batch, ops in itertools.product(arguments.batch, ("plain", "triton")):
        run = adapter = None  # the last one's memory is the next one's
        gc.collect()
        adapter = random_adapter(config, "cuda")
        linears = adapter.decoder.num_base_parameters - 2 * config.vocab_size * config.hidden_size
        run = Run(adapter, store, batch, arguments.steps)
        with plain_ops() if ops == "plain" else nullcontext():
            results, seconds = run.measure()
        tokens = sum(result.num_tokens for result in results[1:])
        norms = [result.grad_norm for result in results]
        print(
            f"{ops:6}  {batch:5}  {arguments.steps / seconds:7.2f}  {batch * arguments.steps / seconds:9.1f}  "
            f"{tokens / seconds:7,.0f}  {4 * linears * tokens / seconds / limit:13.1%}  "
            f"{torch.cuda.max_memory_allocated() / 2**30:8.1f}  {results[0].loss:7.3f}..{results[-1].loss:.3f}  "
            f"{min(norms):.2f} to {max(norms):.2f}"
        )
        figures = {
            "workload": workload,
            "system": f"strop, {ops} ops",
            "setting": f"batch {batch}",
            "samples_per_s": batch * arguments.steps / seconds,
            "tokens_per_s": tokens / seconds,
            "executed_tokens_per_s": tokens / seconds,  # no padding
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "loss_first": results[0].loss,
            "loss_last": results[-1].loss,
            "grad_norm_last": norms[-1],
        }
        report.append(arguments.json, figures)
    if arguments.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run.step(WARMUP + arguments.steps)
            torch.cuda.synchronize()
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70))


if __name__ == "__main__":
    main()
