"""The packed, shared and captured path equals the plain decoder on separate samples, within 1e-4.

Float32 under Triton's interpreter, one tiny model and one tree of nested prefixes that needs partial sums, repeated
labels and padding. The wrong edits that these comparisons must notice are in tests/mutants/edits/fused.yaml.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has builds for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU the kernels are compiled; tests/gpu has them", allow_module_level=True)

from emulated_cuda_graphs import emulate_graphs
from float8_interpreter import round_as_hardware
from strop.data.store import Sample
from strop.fused.capture import CapturedGradients
from strop.fused.decoder import FusedDecoder
from strop.fused.inputs import FusedInputs, lay_out, read_inputs
from strop.microbatch.pack import Microbatch, PackedInputs, pack
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.ops import linear
from strop.ops.linear import Operand
from strop.ops.triton import attention_plan
from strop.recipe import LoraSection, TrainSection
from strop.training.gradients import Gradients, PlainGradients
from strop.training.optim import FlatAdamW
from strop.training.step import train_step
from tiny_models import write_checkpoint

BOUND = 1e-4


def samples(shift: int = 0) -> list[Sample]:
    """A header of 20 tokens, one of 18 below it, and one sample twice.

    Another `shift` is other tokens in the same shapes.
    """
    random = np.random.default_rng(0)
    header, below = random.integers(3, 120, 20), random.integers(3, 120, 18)
    tails = [random.integers(3, 120, n) for n in (4, 7, 3)]
    rows = [
        np.concatenate(parts) for parts in ((header, below, tails[0]), (header, below, tails[1]), (header, tails[2]))
    ]
    rows = [((row - 3 + shift) % 120 + 3).astype(np.int32) for row in (*rows, rows[0])]
    return [Sample(row, np.arange(len(row)) > 14) for row in rows]


def batch_of(shift: int = 0, share: bool = True) -> Microbatch:
    rows = samples(shift)
    (batch,) = pack(rows, range(len(rows)), 10_000, share=share)
    return batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return write_checkpoint(tmp_path_factory.mktemp("model"), "llama3", **sizes, **heads)


@pytest.fixture(autouse=True)
def _many_partial_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: 16)


def adapter_of(folder: Path, float8: bool = False) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, torch.float32, float8=float8), LoraSection(r=4, lora_alpha=12), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter


Measured = tuple[Tensor, Tensor]
"""The loss and all gradients."""


def plain(adapter: LoraAdapter, share: bool = False) -> Measured:
    """The plain decoder's, each sample by itself."""
    adapter.flat_grad.zero_()
    nll = adapter.decoder.nll_sum(PackedInputs.of(batch_of(share=share), torch.device("cpu")))
    nll.backward()
    return nll.detach(), adapter.flat_grad.clone()


def fused(
    adapter: LoraAdapter, batch: Microbatch | None = None, change: Callable[[FusedInputs], FusedInputs] = lambda x: x
) -> Measured:
    model = FusedDecoder(adapter)
    inputs = read_inputs(*lay_out(batch or batch_of(), "graph"))
    nll = model.nll_sum(change(inputs))
    nll.backward()
    return nll.detach(), model.work.collect()


def distance(got: Measured, want: Measured) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


@pytest.fixture(scope="module")
def exact(folder: Path) -> Measured:
    return plain(adapter_of(folder))


def test_one_microbatch(folder: Path, exact: Measured) -> None:
    batch = batch_of()
    plan = attention_plan.plan_attention(batch.tree)
    assert max(batch.tree.parents) > 0, "nested"
    assert plan.num_slots > 0
    assert batch.weights.max() > 1
    assert lay_out(batch, "graph")[1].tokens > batch.num_tokens
    assert distance(fused(adapter_of(folder)), exact) < BOUND


def float32_product(x: Operand, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """`linear._scaled_product` without rounding its result to bfloat16."""
    assert x.scale_T is not None
    return (x.values.float() @ weight_OI.float().t()) * x.scale_T[:, None] * scale_O


def test_float8(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    round_as_hardware(monkeypatch)
    monkeypatch.setattr(linear, "_scaled_product", float32_product)
    adapter = adapter_of(folder, float8=True)
    assert adapter.decoder.precision == "float8"
    want = plain(adapter, share=True)  # apart, gradients are rounded before they are added up: 3% of difference
    assert distance(fused(adapter), want) < BOUND


def trajectory(adapter: LoraAdapter, gradients: Gradients, share: bool, steps: int) -> list[float]:
    """Losses and gradient norms of a few steps: run as it is, captured, replayed."""
    optimizer, numbers = FlatAdamW(adapter, TrainSection()), []
    for step in range(steps):
        result = train_step(gradients, optimizer, [batch_of(17 * step, share)], 0.01, 1.0).result()
        numbers += [result.loss, result.grad_norm]
    return numbers


@pytest.fixture
def off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], float]:
    """How far some steps of the captured engine are from the plain decoder's."""
    emulate_graphs(monkeypatch)

    def measured(steps: int) -> float:
        adapter = adapter_of(folder)
        want = trajectory(adapter, PlainGradients(adapter), share=False, steps=steps)
        adapter = adapter_of(folder)
        gradients = CapturedGradients(adapter)
        got = trajectory(adapter, gradients, share=True, steps=steps)
        (captured,) = gradients._graphs.values()
        assert captured.graph.replays == steps - 1, "all microbatches are of one capacity"  # type: ignore[attr-defined]
        return max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))

    return measured


def test_captured_steps(off: Callable[[int], float]) -> None:
    assert off(3) < BOUND
