"""LoRA's working copy: what goes there and comes back is the adapter's own buffer, in every layout."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has builds for Linux only")

from strop.fused.lora_work import LoraWork
from strop.model.lora import LoraAdapter, projections
from strop.model.pretrained.tensors import part_rows
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint

TARGETS = {
    "all": "all-linear",
    "attention": ["q_proj", "v_proj", "o_proj"],
    "one": ["up_proj"],
}
FUSED_TARGETS = {"all": "all-linear", "attention": ["qkv_proj"], "one": ["down_proj"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: write_checkpoint(tmp_path_factory.mktemp(family), family, num_hidden_layers=2)
        for family in ("llama3", "phi3")
    }


def adapter_of(folder: Path, family: str, targets: str, rank: int) -> LoraAdapter:
    names = (FUSED_TARGETS if family == "phi3" else TARGETS)[targets]
    decoder = load_decoder(folder, torch.float32)
    adapter = LoraAdapter(decoder, LoraSection(r=rank, target_modules=names), seed=0)
    adapter.flat.normal_(generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize("rank", [4, 16, 24])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_there_and_back(folders: dict[str, Path], family: str, targets: str, rank: int) -> None:
    adapter = adapter_of(folders[family], family, targets, rank)
    work = LoraWork(adapter)
    work.refresh()
    filled = 0
    for pair in work.thin.values():
        pair.grad_a_IR.copy_(pair.a_IR)
        pair.grad_b_OR.copy_(pair.b_OR)
        filled += int((pair.a_IR != 0).sum() + (pair.b_OR != 0).sum())
    assert filled == adapter.num_parameters  # each parameter once, zeros elsewhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda like: torch.full_like(like, 7.0))  # what was in the memory before
        assert torch.equal(work.collect(), adapter.flat)
    work.grad.copy_(work.grad.roll(1))
    assert not torch.equal(work.collect(), adapter.flat)


@pytest.mark.parametrize("rank", [4, 16, 24])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_the_product_is_loras(folders: dict[str, Path], family: str, targets: str, rank: int) -> None:
    """X A^T B^T of every projection, and of each part of it from its own block of columns alone."""
    adapter = adapter_of(folders[family], family, targets, rank)
    work = LoraWork(adapter)
    work.refresh()
    for (layer, group), projection in projections(adapter.decoder).items():
        pair = work.thin[layer, group]
        x = torch.randn(5, projection.frozen.shape[1])
        want = torch.zeros(5, projection.frozen.shape[0])
        if terms := projection.lora:
            start = 0
            for i, (first, last) in enumerate(terms.rows):
                a = terms.a_RI.detach()[i * rank : (i + 1) * rank]
                want[:, first:last] = x @ a.t() @ terms.b_OR.detach()[start : start + last - first].t()
                start += last - first
        h = x @ pair.a_IR
        assert (terms is None) == (want.abs().max() == 0)
        rows = part_rows(adapter.decoder.config)[group]
        for (first, last), begin in zip(rows, pair.blocks.starts, strict=True):
            columns = slice(begin, begin + pair.blocks.width)
            part = h[:, columns] @ pair.b_OR[first:last].t()
            assert torch.allclose(part, want[:, first:last], rtol=1e-4, atol=1e-4)
        for width in (pair.blocks.width, pair.a_IR.shape[1]):
            assert width >= 16
            assert width & (width - 1) == 0


def test_parameters_are_taken_over_only_when_asked(folders: dict[str, Path]) -> None:
    adapter = adapter_of(folders["llama3"], "llama3", "all", 4)
    work = LoraWork(adapter)
    work.refresh()
    before = work.thin[0, "o"].a_IR.clone()
    adapter.flat.mul_(2)
    assert torch.equal(work.thin[0, "o"].a_IR, before)
    work.refresh()
    assert torch.equal(work.thin[0, "o"].a_IR, 2 * before)
