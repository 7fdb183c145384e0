from pathlib import Path

import pytest
import torch

from strop.errors import RecipeError
from strop.model.config import read_config
from strop.model.lora import LoraAdapter, initial_tensors, resolve_targets
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint

SPLIT = read_config(
    {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
)
FUSED = read_config(
    {
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
)
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_targets_of_a_split_checkpoint() -> None:
    assert resolve_targets(SPLIT, SEVEN) == sorted(SEVEN)
    assert resolve_targets(SPLIT, "all-linear") == sorted(SEVEN)
    assert resolve_targets(SPLIT, ["v_proj"]) == ["v_proj"]


def test_the_seven_names_mean_the_fused_modules() -> None:
    fused = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    assert resolve_targets(FUSED, SEVEN) == fused
    assert resolve_targets(FUSED, "all-linear") == fused
    assert resolve_targets(FUSED, ["qkv_proj"]) == ["qkv_proj"]


@pytest.mark.parametrize(
    ("config", "targets", "words"),
    [
        (SPLIT, ["q_proj", "W_pack"], ["W_pack", "gate_proj"]),
        (SPLIT, ["qkv_proj"], ["qkv_proj"]),
        (FUSED, ["q_proj", "v_proj"], ["qkv_proj", "add k_proj"]),
    ],
)
def test_a_target_that_matches_nothing_is_an_error(config: object, targets: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"lora\.target_modules") as error:
        resolve_targets(config, targets)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words)


def test_the_buffer_is_the_parameters_and_the_start_is_the_base(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama3"), torch.float32)
    adapter = LoraAdapter(decoder, LoraSection(r=4), seed=0)
    state = adapter.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == adapter.num_parameters
    assert all(not tensor.any() for name, tensor in state.items() if "lora_B" in name)
    adapter.flat.fill_(2.0)
    assert all((tensor == 2.0).all() for tensor in state.values())
    assert not list(decoder.parameters())  # nothing but the adapter can be trained


def test_initial_values_are_pefts_and_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama3")

    def draw(seed: int, targets: list[str]) -> dict[str, torch.Tensor]:
        adapter = LoraAdapter(load_decoder(folder, torch.float32), LoraSection(r=8, target_modules=targets), seed)
        return adapter.state_dict()

    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    a = draw(0, SEVEN)[name]
    assert torch.equal(a, draw(0, ["v_proj"])[name])
    assert not torch.equal(a, draw(1, SEVEN)[name])
    bound = 1 / a.shape[1] ** 0.5  # kaiming_uniform_(a=sqrt(5))
    assert 0.9 * bound < a.abs().max().item() <= bound
    assert abs(a.mean().item()) < bound / 5


@pytest.mark.parametrize("family", ["phi3", "llama3", "qwen3"])
def test_the_first_tensors_are_known_without_a_model(family: str, tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, family), torch.float32)
    section = LoraSection(r=4, target_modules="all-linear")
    want = LoraAdapter(decoder, section, seed=3).state_dict()
    got = initial_tensors(decoder.config, section, seed=3)
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    other = initial_tensors(decoder.config, section, seed=4)
    assert not any(torch.equal(got[name], other[name]) for name in want if "lora_A" in name)
