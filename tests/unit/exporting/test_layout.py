"""A Phi-3 adapter in either layout is the same function, to PEFT too."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from strop.errors import RecipeError, StropError
from strop.exporting import layout as layouts
from strop.exporting.adapter import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from strop.exporting.layout import Layout, convert_layout
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import load_oracle, write_checkpoint

IDS = torch.arange(3, 40)[None]
OTHER: dict[Layout, str] = {"split": "phi3-split", "fused": "phi3"}


def checkpoints(tmp_path: Path) -> dict[Layout, Path]:
    """One model in both layouts."""
    folders: dict[Layout, Path] = {layout: write_checkpoint(tmp_path / layout, name) for layout, name in OTHER.items()}
    tensors = load_file(folders["split"] / "model.safetensors")
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    merged = {}
    for name, tensor in tensors.items():
        module = name.split(".")[-2]
        for fused, names in parts.items():
            if module == names[0]:
                matrices = [tensors[name.replace(module, part)] for part in names]
                merged[name.replace(module, fused)] = torch.cat(matrices)
        if not any(module in names for names in parts.values()):
            merged[name] = tensor
    save_file(merged, folders["fused"] / "model.safetensors", {"format": "pt"})
    return folders


def trained(folder: Path, out: Path, **section: object) -> Path:
    adapter = LoraAdapter(
        load_decoder(folder, torch.float32), LoraSection(**{"r": 4, "lora_alpha": 6, **section}), seed=0
    )
    adapter.flat.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    save_adapter(adapter, out, "org/base", "a-tag", lambda staging: None)
    return out


def logits(base: Path, adapter: Path | None) -> torch.Tensor:
    model = load_oracle(base, torch.float64)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).double()
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("section", [{}, {"use_rslora": True}, {"target_modules": ("q_proj", "v_proj", "down_proj")}])
def test_split_to_fused_and_back(section: dict[str, object], tmp_path: Path) -> None:
    bases = checkpoints(tmp_path)
    config = load_decoder(bases["split"], torch.float32).config
    split = trained(bases["split"], tmp_path / "a", **section)
    fused, back = tmp_path / "b", tmp_path / "c"
    convert_layout(split, fused, "fused", config, "org/fused")
    convert_layout(fused, back, "split", config, None)
    want = logits(bases["split"], split)
    assert (logits(bases["fused"], fused) - want).abs().max() < 1e-10 * want.abs().max()
    assert (logits(bases["split"], None) - want).abs().max() > 1e-3 * want.abs().max()
    before, after = load_file(split / WEIGHTS_FILE), load_file(back / WEIGHTS_FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    settings = [json.loads((folder / CONFIG_FILE).read_text("utf-8")) for folder in (split, fused, back)]
    assert settings[1]["base_model_name_or_path"] == "org/fused"
    assert settings[1]["revision"] is None
    assert settings[2]["r"] == settings[0]["r"] == 4
    assert settings[2]["lora_alpha"] == pytest.approx(settings[0]["lora_alpha"])
    assert settings[2]["target_modules"] == settings[0]["target_modules"]


def test_fused_to_split(tmp_path: Path) -> None:
    bases = checkpoints(tmp_path)
    decoder = load_decoder(bases["split"], torch.float32)
    fused, out = trained(bases["fused"], tmp_path / "a"), tmp_path / "b"
    convert_layout(fused, out, "split", decoder.config, None)
    want = logits(bases["fused"], fused)
    assert (logits(bases["split"], out) - want).abs().max() < 1e-10 * want.abs().max()
    load_adapter(LoraAdapter(decoder, LoraSection(r=4, lora_alpha=6), seed=3), out)  # strop's own reader takes it too


def test_nothing_to_convert_is_refused(tmp_path: Path) -> None:
    bases = checkpoints(tmp_path)
    config = load_decoder(bases["fused"], torch.float32).config
    fused = trained(bases["fused"], tmp_path / "a")
    with pytest.raises(RecipeError, match="nothing to convert to the fused layout"):
        convert_layout(fused, tmp_path / "b", "fused", config, None)


def test_a_wrong_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = checkpoints(tmp_path)
    config = load_decoder(bases["fused"], torch.float32).config
    fused = trained(bases["fused"], tmp_path / "a")
    right = layouts.padded

    def wrong(factors: layouts.Factors) -> layouts.Factors:
        return {name: (a, b * (1 + 1e-6 * name.endswith("v_proj"))) for name, (a, b) in right(factors).items()}

    monkeypatch.setattr(layouts, "padded", wrong)
    with pytest.raises(StropError, match="v_proj does not compute the same"):
        convert_layout(fused, tmp_path / "b", "split", config, None)
