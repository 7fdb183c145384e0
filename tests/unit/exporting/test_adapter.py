"""An adapter folder is put in place only if it reads back as what was trained."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from model_folders import edit_json, write_json
from strop.errors import CheckpointError, StropError
from strop.exporting.adapter import CONFIG_FILE, WEIGHTS_FILE, check_adapter, load_adapter, save_adapter
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint


@pytest.fixture(params=["llama3", "phi3"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> LoraAdapter:
    decoder = load_decoder(write_checkpoint(tmp_path / "model", request.param), torch.float32)
    adapter = LoraAdapter(decoder, LoraSection(r=4, lora_alpha=8), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter


def carry(staging: Path) -> None:
    (staging / "tokenizer.json").write_text("{}")


def save(adapter: LoraAdapter, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    save_adapter(adapter, folder, "org/base", None, carry)
    return folder


def test_what_is_saved_is_what_is_loaded(trained: LoraAdapter, tmp_path: Path) -> None:
    folder = save(trained, tmp_path)
    fresh = LoraAdapter(trained.decoder, trained.section, seed=9)
    load_adapter(fresh, folder)
    assert torch.equal(fresh.flat, trained.flat)
    assert not list(tmp_path.glob("*.tmp"))
    assert (folder / "tokenizer.json").exists()
    assert (folder / WEIGHTS_FILE).stat().st_mode & 0o044, "others can read it"


def test_rslora_is_saved_with_its_scaling(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path / "model", "llama3"), torch.float32)
    adapter = LoraAdapter(decoder, LoraSection(r=4, lora_alpha=8, use_rslora=True), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    folder = save(adapter, tmp_path)
    settings = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (4, 8, True)
    (folder / CONFIG_FILE).write_text(json.dumps(settings | {"use_rslora": False}))
    with pytest.raises(StropError, match="scaling other than the trained 4"):
        check_adapter(adapter, folder)


def test_module_names_are_the_checkpoints_own(tmp_path: Path) -> None:
    for family, module in (("phi3", "self_attn.qkv_proj"), ("llama2", "self_attn.q_proj")):
        decoder = load_decoder(write_checkpoint(tmp_path / family, family), torch.float32)
        names = LoraAdapter(decoder, LoraSection(r=2), seed=0).state_dict()
        assert f"base_model.model.model.layers.0.{module}.lora_A.weight" in names


def test_an_untrained_adapter_is_refused(trained: LoraAdapter, tmp_path: Path) -> None:
    trained.state_dict()[next(n for n in trained.state_dict() if "lora_B" in n)].zero_()
    with pytest.raises(StropError, match="all zero"):
        save(trained, tmp_path)
    assert not (tmp_path / "adapter").exists()


def damage(file: Path, change: str) -> None:
    tensors = load_file(file)
    name = next(iter(sorted(tensors)))
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 4)
    elif change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    else:
        tensors[name] = tensors[name] * 1.01
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [("missing", "missing"), ("extra", "unexpected"), ("shape", "shape"), ("value", "logits differ")],
)
def test_a_file_that_is_not_the_trained_adapter_is_seen(
    trained: LoraAdapter, tmp_path: Path, change: str, words: str
) -> None:
    folder = save(trained, tmp_path)
    flat = trained.flat.clone()
    check_adapter(trained, folder)
    damage(folder / WEIGHTS_FILE, change)
    with pytest.raises(StropError, match=words):
        check_adapter(trained, folder)
    assert torch.equal(trained.flat, flat), "the trained weights stay in place whatever the check finds"


def test_a_wrong_scaling_is_seen(trained: LoraAdapter, tmp_path: Path) -> None:
    folder = save(trained, tmp_path)
    config = folder / CONFIG_FILE
    config.write_text(config.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 9.0'))
    with pytest.raises(StropError, match="scaling"):
        check_adapter(trained, folder)


OTHER_SETTINGS: dict[str, object] = {
    "r": 8,
    "lora_alpha": 9.0,
    "use_rslora": True,
    "use_dora": True,
    "bias": "all",
    "fan_in_fan_out": True,
    "peft_type": "LOHA",
    "target_modules": ["q_proj"],
    "init_lora_weights": "pissa",
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "layers_to_transform": [0],
    "layer_replication": [[0, 1]],
    "exclude_modules": ["v_proj"],
    "lora_bias": True,
    "trainable_token_indices": [1],
    "target_parameters": ["x"],
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "of_a_later_peft": 1,
}


@pytest.mark.parametrize("key", OTHER_SETTINGS)
def test_an_adapter_that_asks_for_another_computation_is_refused_by_name(
    key: str, trained: LoraAdapter, tmp_path: Path
) -> None:
    folder = save(trained, tmp_path)
    edit_json(folder / CONFIG_FILE, **{key: OTHER_SETTINGS[key]})
    before = trained.flat.clone()
    with pytest.raises(CheckpointError, match=rf"{CONFIG_FILE}: {key} .*: not what the run's recipe trained \(r 4"):
        load_adapter(trained, folder)
    assert torch.equal(trained.flat, before)


@pytest.mark.parametrize("key", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_an_adapter_that_leaves_out_what_peft_has_another_default_for_is_refused(
    key: str, trained: LoraAdapter, tmp_path: Path
) -> None:
    folder = save(trained, tmp_path)
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config[key]
    write_json(folder / CONFIG_FILE, config)
    with pytest.raises(CheckpointError, match=f"{key} None"):
        load_adapter(trained, folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"r": 4, "r": 8}', "\udcff"])
def test_a_configuration_that_cannot_be_read_is_refused(text: str, trained: LoraAdapter, tmp_path: Path) -> None:
    folder = save(trained, tmp_path)
    (folder / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        load_adapter(trained, folder)


def test_a_configuration_that_peft_has_written_again_is_accepted(trained: LoraAdapter, tmp_path: Path) -> None:
    """It has all of PEFT's keys; none of their defaults asks for anything."""
    folder = save(trained, tmp_path)
    peft.LoraConfig.from_pretrained(str(folder)).save_pretrained(str(folder))
    written = json.loads((folder / CONFIG_FILE).read_text())
    assert len(written) > 30
    edit_json(folder / CONFIG_FILE, base_model_name_or_path="org/renamed", lora_dropout=0.5)
    fresh = LoraAdapter(trained.decoder, trained.section, seed=9)
    load_adapter(fresh, folder)
    assert torch.equal(fresh.flat, trained.flat)
