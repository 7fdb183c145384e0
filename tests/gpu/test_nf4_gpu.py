"""NF4 and 8-bit AdamW on a real GPU: the compiled kernels, captured steps, and the memory a model takes."""

import gc
from pathlib import Path

import pytest
import torch

from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.ops import adamw_8bit as module
from strop.ops.adamw_8bit import AdamWSettings, Moments, adamw_8bit
from strop.ops.nf4 import dequantise, dequantise_into, quantise
from strop.recipe import LoraSection, TrainSection
from strop.training.gradients import why_plain
from strop.training.optim import choose_optimizer
from strop.training.step import train_step
from test_fused_gpu import captured, plain_gradient, step_of
from tiny_models import write_checkpoint
from tree_batches import batch_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cpu(packed):
    nested = packed.nested and type(packed.nested)(*(x.cpu() for x in packed.nested))
    return packed._replace(packed=packed.packed.cpu(), absmax_B=packed.absmax_B.cpu(), nested=nested)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3072, 8192), (100, 192), (33, 50), (1, 64)])
def test_the_kernel_has_the_plain_forms_bits(shape: tuple[int, int], dtype: torch.dtype, double: bool) -> None:
    torch.manual_seed(0)
    packed = quantise(torch.randn(shape, device="cuda").bfloat16() * 0.02, double)
    out = torch.full((shape[0] + 1, shape[1]), 7.0, dtype=dtype, device="cuda")
    dequantise_into(packed, out[:-1])
    want = dequantise(on_cpu(packed), dtype)
    assert torch.equal(out[:-1].cpu(), want)
    assert (out[-1] == 7).all()
    dequantise_into(packed._replace(absmax_B=packed.absmax_B.roll(1)), out[:-1])
    assert packed.absmax_B.numel() == 1 or not torch.equal(out[:-1].cpu(), want)


def test_a_matrix_is_quantised_as_on_a_cpu() -> None:
    torch.manual_seed(0)
    weight = torch.randn(320, 256, device="cuda").bfloat16()
    ours, want = on_cpu(quantise(weight, False)), quantise(weight.cpu(), False)
    assert torch.equal(ours.packed, want.packed)
    assert torch.equal(ours.absmax_B, want.absmax_B)


def test_8_bit_adamw_has_the_plain_forms_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, skip = AdamWSettings(0.9, 0.999, 1e-8, 0.01), torch.tensor(False, device="cuda")
    torch.manual_seed(0)
    start, grads = torch.randn(50_000, device="cuda"), torch.randn(5, 50_000, device="cuda") * 1e-3

    def run() -> tuple[torch.Tensor, Moments]:
        parameter = start.clone()
        moments = Moments.zeros(parameter)
        for grad in grads:
            adamw_8bit(parameter, grad, moments, settings, 1e-2, skip)
        return parameter, moments

    got, moments = run()
    again, _ = run()
    assert torch.equal(got, again)
    monkeypatch.setattr(module, "kernels_for", lambda x: None)
    want, want_moments = run()
    assert (got - want).norm() < 1e-4 * (want - start).norm()
    assert (moments.mean_N != want_moments.mean_N).float().mean() < 1e-3
    assert (moments.square_N != want_moments.square_N).float().mean() < 1e-3
    before = [x.clone() for x in (got, *moments)]
    adamw_8bit(got, grads[0], moments, settings, 1e-2, ~skip)
    assert all(torch.equal(a, b) for a, b in zip(before, (got, *moments), strict=True))


def requested_bytes() -> int:
    """In tensors of this process, as they were asked for.

    What torch calls allocated is more where a test before has left free blocks: one is given away whole if it is less
    than 1 MiB too large. And what that test has left for the garbage collector must not go while this one measures.
    """
    gc.collect()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_stats()["requested_bytes.all.current"])


def adapter_of(folder: Path, dtype: torch.dtype, nf4: bool = True) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, dtype, "cuda", nf4=nf4), LoraSection(r=8), seed=0)
    adapter.flat.normal_(std=0.05, generator=torch.Generator("cuda").manual_seed(1))
    return adapter


@pytest.mark.parametrize("family", ["phi3", "llama3"])
def test_the_fused_layers_are_as_near_as_the_plain_decoder(family: str, tmp_path: Path) -> None:
    # In bfloat16 on disk: rounded first, a weight between two levels would become the other one.
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "gain": 1.0, "dtype": torch.bfloat16}
    folder, batch = write_checkpoint(tmp_path, family, **sizes), batch_of(share=True)
    exact = plain_gradient(adapter_of(folder, torch.float32), batch)
    rough = plain_gradient(adapter_of(folder, torch.bfloat16), batch)
    adapter = adapter_of(folder, torch.bfloat16)
    assert adapter.decoder.precision == "nf4"
    assert why_plain(adapter) is None
    _, fused = step_of(captured(adapter), adapter, batch)
    assert (fused - exact).norm() <= 2 * (rough - exact).norm() < 0.15 * exact.norm()
    unrounded = plain_gradient(adapter_of(folder, torch.float32, nf4=False), batch)
    assert (unrounded - exact).norm() > 4 * (fused - exact).norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_captured_step_gives_the_bits_of_an_eager_one(checkpointing: bool, tmp_path: Path) -> None:
    """Two capacities take turns, each run as it is, captured and replayed, so graphs share the scratch memory."""
    folder = write_checkpoint(tmp_path, "llama3", hidden_size=128, head_dim=32, intermediate_size=256)
    adapter = adapter_of(folder, torch.bfloat16)
    adapter.decoder.gradient_checkpointing = checkpointing
    batches = [batch_of(share, seed) for seed in range(2) for share in (True, False)]
    eager = [step_of(captured(adapter), adapter, batch) for batch in batches]
    gradients = captured(adapter)
    for _ in range(3):
        for batch, (nll, gradient) in zip(batches, eager, strict=True):
            again_nll, again = step_of(gradients, adapter, batch)
            assert torch.equal(again_nll, nll)
            assert torch.equal(again, gradient)
    assert not torch.equal(eager[0][1], eager[2][1])


def test_steps_with_8_bit_moments_follow_those_in_32_bits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "phi3", hidden_size=128, intermediate_size=256)
    losses = {}
    for optim in ("adamw_torch", "adamw_8bit"):
        adapter = adapter_of(folder, torch.bfloat16)
        gradients, optimizer = captured(adapter), choose_optimizer(adapter, TrainSection(optim=optim))
        steps = [train_step(gradients, optimizer, [batch_of(True)], 1e-2, 1.0) for _ in range(20)]
        losses[optim] = [step.result().loss for step in steps]
    first, last = losses["adamw_torch"][0], losses["adamw_torch"][-1]
    assert losses["adamw_8bit"][0] == first
    assert abs(losses["adamw_8bit"][-1] - last) < 0.2 * (first - last)


def test_a_layer_takes_little_more_than_its_bytes() -> None:
    """4.13 bits a weight, and one dense matrix for all of them."""
    from strop.ops.nf4 import Nf4Weight, Scratch

    weights = [torch.randn(4096, 4096, device="cuda").bfloat16() for _ in range(4)]
    scratch, before = Scratch(torch.bfloat16, "cuda"), requested_bytes()
    held = [Nf4Weight([quantise(weight)], scratch) for weight in weights]
    taken = requested_bytes() - before
    assert len(held) * 4096 * 4096 * 0.5 < taken - 2 * 4096**2 < len(held) * 4096 * 4096 * 0.53
