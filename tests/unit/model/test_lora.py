from pathlib import Path

import pytest
import torch

from strop.errors import RecipeError
from strop.microbatch.tree import Tree
from strop.model.config import read_config
from strop.model.decoder import Decoder
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
    assert not torch.equal(a, draw(0, SEVEN)[name.replace("layers.1", "layers.0")])
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


def adapter_of(folder: Path, **section: object) -> LoraAdapter:
    decoder = load_decoder(write_checkpoint(folder, "llama3"), torch.float64)
    adapter = LoraAdapter(decoder, LoraSection(r=4, lora_alpha=12, **section), seed=0)  # type: ignore[arg-type]
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize(("section", "scaling"), [({}, 3.0), ({"use_rslora": True}, 6.0)])
def test_the_scaling_is_alpha_over_r_or_its_root(section: dict[str, object], scaling: float, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, **section)
    assert adapter.scaling == scaling
    [layer, *_] = adapter.decoder.layers
    x = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        with_lora = layer.down(torch.nn.functional.pad(x, (0, 32)))
        adapter.enable(False)
        base = layer.down(torch.nn.functional.pad(x, (0, 32)))
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    a, b = (adapter.state_dict()[name.format(letter)] for letter in "AB")
    want = scaling * torch.nn.functional.pad(x, (0, 32)) @ a.T @ b.T
    assert torch.allclose(with_lora - base, want, rtol=1e-12, atol=1e-12)


def test_switched_off_it_is_the_base_and_on_again_the_adapter(tmp_path: Path) -> None:
    adapter, ids = adapter_of(tmp_path), torch.arange(3, 20)

    def logits(decoder: Decoder) -> torch.Tensor:
        with torch.no_grad():
            return decoder.logits(decoder.packed_hidden_states(ids, Tree.of((17,))))

    tuned = logits(adapter.decoder)
    adapter.enable(False)
    assert torch.equal(logits(adapter.decoder), logits(load_decoder(tmp_path, torch.float64)))
    adapter.enable(True)
    assert torch.equal(logits(adapter.decoder), tuned)


def test_gradients_are_views_in_the_order_of_the_parameters(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path)
    assert adapter.flat_grad.shape == adapter.flat.shape
    for number, parameter in enumerate(adapter._parameters):
        assert parameter.grad.shape == parameter.shape
        parameter.grad.fill_(number)
    where = torch.cat([torch.full((p.numel(),), n) for n, p in enumerate(adapter._parameters)])
    assert torch.equal(adapter.flat_grad, where.double())


def test_dropout_is_for_training_alone(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, lora_dropout=0.5)
    [layer, *_] = adapter.decoder.layers
    ones = torch.ones(5, layer.o.frozen.shape[1], dtype=torch.float64)
    adapter.decoder.eval()
    assert torch.equal(layer.o(ones), layer.o(ones))
    plain = layer.o(ones)
    adapter.decoder.train()
    adapter.dropout.keys_T = torch.arange(5, dtype=torch.int32)
    assert not torch.equal(layer.o(ones), plain)
    adapter.decoder.eval()
    assert torch.equal(layer.o(ones), plain)


def test_only_targets_have_initial_tensors(tmp_path: Path) -> None:
    decoder = load_decoder(write_checkpoint(tmp_path, "llama3"), torch.float32)
    section = LoraSection(r=4, target_modules=("q_proj", "down_proj"))
    got = initial_tensors(decoder.config, section, seed=3)
    assert {name.split(".")[-3] for name in got} == {"q_proj", "down_proj"}
    want = LoraAdapter(decoder, section, seed=3).state_dict()
    assert list(got) == list(want)
    assert all(got[name].shape == want[name].shape for name in want)
