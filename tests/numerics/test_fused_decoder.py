"""The fused decoder computes what the plain one does, forward and backward, on trees and on separate samples.

In float32 under Triton's interpreter, so that nothing but the order of sums differs.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from strop.data.pack import Batch, pack
from strop.data.store import Sample
from strop.model.fused import FusedDecoder
from strop.model.fused_inputs import InputBlock, read_inputs
from strop.model.inputs import PackedInputs
from strop.model.lora import LoraAdapter
from strop.model.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint

TOLERANCE = 1e-4


def samples(vocab: int = 60) -> list[Sample]:
    """A prefix of 70 tokens shared by three, one of 9 inside it shared by two, a loner, and one of a single token."""
    rng = np.random.default_rng(0)
    long, short = rng.integers(3, vocab, 70), rng.integers(3, vocab, 9)
    tails = [rng.integers(3, vocab, n) for n in (5, 20, 66)]
    rows = [
        np.concatenate((long, short, tails[0])),
        np.concatenate((long, short, tails[1])),
        np.concatenate((long, tails[2])),
        rng.integers(3, vocab, 75),
        rng.integers(3, vocab, 1),
    ]
    return [Sample(row.astype(np.int32), rng.random(len(row)) < 0.5) for row in rows]


def batch_of(share: bool) -> Batch:
    rows = samples()
    (batch,) = pack(rows, range(len(rows)), 10_000, share=share)
    assert (max(batch.parents) >= 0) == share
    return batch


def fresh(folder: Path) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, torch.float32), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter


def plain(adapter: LoraAdapter, batch: Batch) -> tuple[float, torch.Tensor]:
    adapter.flat_grad.zero_()
    nll = adapter.decoder.nll_sum(PackedInputs.of(batch, torch.device("cpu")))
    nll.backward()
    return nll.item(), adapter.flat_grad.clone()


def fused(adapter: LoraAdapter, batch: Batch, padded: bool) -> tuple[float, torch.Tensor]:
    model = FusedDecoder(adapter)
    block = InputBlock.of(batch, padded=padded)
    nll = model.nll_sum(read_inputs(torch.from_numpy(block.numbers), block.capacity))
    nll.backward()
    model.work.collect()
    return nll.item(), adapter.flat_grad.clone()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("share", [True, False], ids=["tree", "flat"])
@pytest.mark.parametrize("family", ["phi3", "llama3", "mistral-window"])
def test_equals_the_plain_decoder(tmp_path: Path, family: str, share: bool) -> None:
    adapter, batch = fresh(write_checkpoint(tmp_path, family)), batch_of(share)
    expected, expected_grad = plain(adapter, batch)
    nll, grad = fused(adapter, batch, padded=False)
    assert nll == pytest.approx(expected, rel=TOLERANCE)
    assert distance(grad, expected_grad) < TOLERANCE
    padded_nll, padded_grad = fused(adapter, batch, padded=True)
    assert padded_nll == pytest.approx(expected, rel=TOLERANCE)
    assert distance(padded_grad, expected_grad) < TOLERANCE
