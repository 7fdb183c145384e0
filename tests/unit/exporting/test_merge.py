"""Merged weights are base + scaling B A, rounded once, in files that safetensors reads."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from strop.errors import StropError
from strop.exporting.adapter import save_adapter
from strop.exporting.merge import merged_model, plan_shards, write_merged
from strop.model.lora import LoraAdapter
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint


def adapted(folder: Path, family: str = "smollm2", **section: object) -> LoraAdapter:
    """A random model in `base` and a trained adapter in `adapter`."""
    write_checkpoint(folder / "base", family, dtype=torch.bfloat16)
    lora = LoraSection(r=4, lora_alpha=12, **section)  # type: ignore[arg-type]
    adapter = LoraAdapter(load_decoder(folder / "base", torch.float32), lora, seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(adapter, folder / "adapter", "org/base", None, lambda staging: None)
    return adapter


@pytest.mark.parametrize(("section", "scaling"), [({}, 3.0), ({"use_rslora": True}, 6.0)])
def test_each_matrix_is_base_plus_scaled_product(section: dict[str, object], scaling: float, tmp_path: Path) -> None:
    factors = adapted(tmp_path, **section).state_dict()
    base = load_file(tmp_path / "base" / "model.safetensors")
    with merged_model(ModelFolder.vetted(tmp_path / "base"), tmp_path / "adapter", nf4=False) as model:
        assert set(model.names) == set(base)
        for name, weight in base.items():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            wanted = weight.double()
            if f"{stem}.lora_A.weight" in factors:
                a, b = (factors[f"{stem}.lora_{letter}.weight"].double() for letter in "AB")
                wanted = wanted + scaling * (b @ a)
            assert model.shape(name) == tuple(weight.shape)
            assert (model[name].double() - wanted).abs().max() < 1e-6 * wanted.abs().max()
        assert sum(f"{n.removesuffix('.weight')}" in " ".join(factors) for n in base) == 21


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_files_are_read_by_others_and_rounded_once(shard_bytes: int, tmp_path: Path) -> None:
    adapted(tmp_path)
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings | {"torch_dtype": "float32"}))
    out = tmp_path / "out"
    out.mkdir()
    with merged_model(ModelFolder.vetted(tmp_path / "base"), tmp_path / "adapter", nf4=False) as model:
        write_merged(model, out, shard_bytes)
        wanted = {name: model[name].to(torch.bfloat16) for name in model.names}
    files = sorted(out.glob("*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    for file in files:  # data begins at a multiple of 8, as the format asks
        assert struct.unpack("<Q", file.read_bytes()[:8])[0] % 8 == 0
    if shard_bytes < 10**9:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert {file.name for file in files} == set(index["weight_map"].values())
        assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
        assert files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"
        assert len(files) > 1
        assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in wanted.values())
        assert all(name in load_file(out / file) for name, file in index["weight_map"].items())
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapted(tmp_path)
    write_checkpoint(tmp_path / "fused", "phi3")
    with pytest.raises(StropError, match="was it trained on this base"):
        with merged_model(ModelFolder.vetted(tmp_path / "fused"), tmp_path / "adapter", nf4=False):
            pass


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([5, 5, 5], [["a", "b"], ["c"]]),  # a shard may be filled to its last byte
        ([5, 6, 4], [["a"], ["b", "c"]]),
        ([30, 1, 1], [["a"], ["b", "c"]]),  # a tensor larger than a shard has one of its own
        ([1], [["a"]]),
    ],
)
def test_shards_are_filled_in_order(sizes: list[int], wanted: list[list[str]]) -> None:
    shapes = {name: (size,) for name, size in zip("abc", sizes, strict=False)}
    assert plan_shards(shapes, 20) == wanted
