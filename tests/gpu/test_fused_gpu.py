"""The fused decoder on a real GPU: bfloat16 and float8, captured graphs, and numbers that are not finite."""

from pathlib import Path

import pytest
import torch

from strop.microbatch.pack import Microbatch, PackedInputs
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.ops.linear import Float8Weight, Operand, quantise_rows
from strop.recipe import LoraSection, TrainSection
from strop.training.optim import FlatAdamW
from strop.training.step import NonFiniteError, train_step
from tiny_models import write_checkpoint
from tree_batches import batch_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def adapter_of(folder: Path, dtype: torch.dtype, float8: bool = False) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, dtype, "cuda", float8), LoraSection(r=8), seed=0)
    generator = torch.Generator("cuda").manual_seed(1)
    adapter.flat.normal_(std=0.05, generator=generator)
    return adapter


def plain_gradient(adapter: LoraAdapter, batch: Microbatch) -> torch.Tensor:
    adapter.flat_grad.zero_()
    adapter.decoder.nll_sum(PackedInputs.of(batch, torch.device("cuda"))).backward()
    return adapter.flat_grad.clone()


def captured(adapter: LoraAdapter):
    from strop.fused.capture import CapturedGradients

    return CapturedGradients(adapter)


def step_of(gradients, adapter: LoraAdapter, batch: Microbatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss and its gradient."""
    losses, grad = gradients.of([batch])
    return losses.sum() * batch.num_loss_tokens, grad * batch.num_loss_tokens


@pytest.mark.parametrize("share", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize(
    ("family", "head_dim"), [("phi3", 64), ("llama3", 96), ("mistral-window", 128), ("qwen2", 64), ("llama-bias", 80)]
)
def test_gradients_are_at_most_twice_as_far_off_as_plain_ones(
    family: str, head_dim: int, share: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 4 * head_dim, "head_dim": head_dim, "intermediate_size": 272, "gain": 1.0}
    folder, batch = write_checkpoint(tmp_path, family, **sizes), batch_of(share)
    exact = plain_gradient(adapter_of(folder, torch.float32), batch)
    rough = plain_gradient(adapter_of(folder, torch.bfloat16), batch)
    adapter = adapter_of(folder, torch.bfloat16)
    _, fused = step_of(captured(adapter), adapter, batch)
    assert (fused - exact).norm() <= 2 * (rough - exact).norm() < 0.1 * exact.norm()
    wrong = step_of(captured(adapter), adapter, batch_of(share, seed=1))[1]
    assert (wrong - exact).norm() > 0.5 * exact.norm()


@pytest.mark.parametrize("float8", [False, True], ids=["bfloat16", "float8"])
def test_a_replayed_graph_gives_the_bits_of_an_eager_run(float8: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "phi3", hidden_size=128, intermediate_size=256)
    adapter = adapter_of(folder, torch.bfloat16, float8)
    assert (adapter.decoder.precision == "float8") == float8
    batches = [batch_of(share, seed) for seed in range(3) for share in (True, False)]
    eager = [step_of(captured(adapter), adapter, batch) for batch in batches]
    gradients = captured(adapter)
    for _ in range(3):  # of each capacity: eager, captured, replayed; the two capacities take turns
        for batch, (nll, gradient) in zip(batches, eager, strict=True):
            again_nll, again = step_of(gradients, adapter, batch)
            assert torch.equal(again_nll, nll)
            assert torch.equal(again, gradient)
    assert not torch.equal(eager[0][1], eager[2][1])


def test_float8_products_are_those_of_the_rounded_factors() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(512, 256, device="cuda").bfloat16(), torch.randn(300, 256, device="cuda").bfloat16()
    frozen, operand = Float8Weight(weight), quantise_rows(x)

    def wide(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return values.double() * scale[:, None].double()

    assert operand.scale_T is not None
    want = wide(*operand) @ wide(frozen.weight, frozen.scale_O).t()
    assert (frozen.product(operand).double() - want).norm() < 5e-3 * want.norm()
    unscaled = Operand(operand.values, torch.ones_like(operand.scale_T))
    assert (frozen.product(unscaled).double() - want).norm() > want.norm()
    back = quantise_rows(torch.randn(300, 512, device="cuda").bfloat16())
    want = wide(*back) @ wide(frozen.weight_t, frozen.scale_I).t()
    assert (frozen.product_back(back).double() - want).norm() < 5e-3 * want.norm()


def test_float8_is_as_near_as_on_the_plain_decoder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama3", hidden_size=128, head_dim=32, gain=1.0, intermediate_size=256)
    batch = batch_of(share=True)
    exact = plain_gradient(adapter_of(folder, torch.float32), batch)
    plain = plain_gradient(adapter_of(folder, torch.bfloat16, float8=True), batch)
    adapter = adapter_of(folder, torch.bfloat16, float8=True)
    _, fused = step_of(captured(adapter), adapter, batch)
    assert 1e-3 * exact.norm() < (fused - exact).norm() <= 1.5 * (plain - exact).norm()
    assert (plain - exact).norm() < 0.3 * exact.norm()


def test_what_is_not_finite_stops_the_device_although_a_later_step_is_in_flight(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "phi3", hidden_size=128, intermediate_size=256)
    adapter = adapter_of(folder, torch.bfloat16)
    optimizer, gradients = FlatAdamW(adapter, TrainSection()), captured(adapter)
    batches = [batch_of(share=True)]
    assert train_step(gradients, optimizer, batches, 1e-3, 1.0).result().grad_norm > 0
    adapter.flat[5] = float("inf")
    before = [adapter.flat.clone(), *optimizer.state().values()]
    first = train_step(gradients, optimizer, batches, 1e-3, 1.0)
    adapter.flat[5] = 0.0
    second = train_step(gradients, optimizer, batches, 1e-3, 1.0)
    with pytest.raises(NonFiniteError):
        first.result()
    second.result()  # sound by itself, but nothing may follow a step that failed
    before[0][5] = 0.0
    after = [adapter.flat, *optimizer.state().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
