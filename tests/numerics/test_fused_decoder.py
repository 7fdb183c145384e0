"""The fused decoder computes what the plain one does, forward and backward, on trees and on separate samples.

In float32 under Triton's interpreter, so that nothing but the order of sums differs.
"""

from pathlib import Path

import pytest
import torch

from strop.fused.decoder import FusedDecoder
from strop.fused.inputs import Padding, lay_out, read_inputs
from strop.microbatch.pack import Microbatch, PackedInputs
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint
from tree_batches import batch_of

TOLERANCE = 1e-4


def fresh(folder: Path) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, torch.float32), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter


def plain(adapter: LoraAdapter, batch: Microbatch) -> tuple[float, torch.Tensor]:
    adapter.flat_grad.zero_()
    nll = adapter.decoder.nll_sum(PackedInputs.of(batch, torch.device("cpu")))
    nll.backward()
    return nll.item(), adapter.flat_grad.clone()


def fused(adapter: LoraAdapter, batch: Microbatch, padding: Padding) -> tuple[float, torch.Tensor]:
    model = FusedDecoder(adapter)
    nll = model.nll_sum(read_inputs(*lay_out(batch, padding)))
    nll.backward()
    return nll.item(), model.work.collect()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check(folder: Path, family: str, batch: Microbatch, padding: Padding) -> None:
    adapter = fresh(write_checkpoint(folder, family, num_hidden_layers=2))
    expected, expected_grad = plain(adapter, batch)
    nll, grad = fused(adapter, batch, padding)
    assert nll == pytest.approx(expected, rel=TOLERANCE)
    assert distance(grad, expected_grad) < TOLERANCE


@pytest.mark.parametrize("share", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize("family", ["phi3", "llama3", "mistral-window"])
def test_equals_the_plain_decoder(tmp_path: Path, family: str, share: bool) -> None:
    check(tmp_path, family, batch_of(share), "none")


@pytest.mark.parametrize("padding", ["tiles", "graph"])
def test_padding_changes_nothing(tmp_path: Path, padding: Padding) -> None:
    check(tmp_path, "phi3", batch_of(share=True), padding)
