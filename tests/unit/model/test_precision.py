"""Which precision a device gets: what the recipe says, else the fastest that it has."""

import pytest
import torch

from strop.errors import RecipeError
from strop.model.config import read_config
from strop.model.precision import choose_precision, why_not_fused
from strop.recipe import LoraSection

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TURING, AMPERE, ADA, HOPPER = (7, 5), (8, 0), (8, 9), (9, 0)


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch):
    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "the card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.mark.parametrize(
    ("capability", "against", "dtype", "float8", "reason"),
    [
        (HOPPER, None, torch.bfloat16, True, "chosen for the card"),
        (HOPPER, "lora_dropout", torch.bfloat16, False, "lora_dropout"),
        (AMPERE, None, torch.bfloat16, False, "the card has no float8"),
        (ADA, None, torch.bfloat16, False, "the card has no float8"),
        (TURING, None, torch.float32, False, "the card has no bfloat16"),
    ],
)
def test_what_a_gpu_gets(has, capability, against, dtype, float8, reason) -> None:
    has(capability)
    chosen = choose_precision("auto", GPU, against)
    assert (chosen.dtype, chosen.float8) == (dtype, float8)
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("asked", "dtype", "float8"),
    [
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("float8", torch.bfloat16, True),
    ],
)
def test_the_recipe_is_followed(has, asked, dtype, float8) -> None:
    has(HOPPER)
    chosen = choose_precision(asked, GPU, "a reason that speaks against float8")
    assert (chosen.dtype, chosen.float8) == (dtype, float8)
    assert "as the recipe says" in chosen.reason
    if not float8:
        assert choose_precision(asked, CPU, None).dtype == dtype


@pytest.mark.parametrize(("asked", "capability"), [("float8", AMPERE), ("float8", TURING), ("bfloat16", TURING)])
def test_a_gpu_that_lacks_it_is_an_error(has, asked, capability) -> None:
    has(capability)
    with pytest.raises(RecipeError, match=f"model.precision={asked}: the card has no {asked}"):
        choose_precision(asked, GPU, None)


def test_a_cpu_computes_in_float32() -> None:
    assert choose_precision("auto", CPU, None).dtype == torch.float32
    with pytest.raises(RecipeError, match=r"model\.precision=float8 needs a Hopper GPU"):
        choose_precision("float8", CPU, None)


@pytest.mark.parametrize(
    ("asked", "dtype", "float8", "reason"),
    [
        ("auto", torch.bfloat16, False, "precision nf4: expanded to bfloat16 for each product"),
        ("bfloat16", torch.bfloat16, False, "precision nf4: expanded to bfloat16"),
        ("float32", torch.float32, False, "precision nf4: expanded to float32"),
        ("float8", torch.bfloat16, True, "precision nf4 in float8"),
    ],
)
def test_four_bits_are_never_made_float8_unless_asked(has, asked, dtype, float8, reason) -> None:
    has(HOPPER)
    chosen = choose_precision(asked, GPU, None, load_in_4bit=True)
    assert (chosen.dtype, chosen.float8, chosen.nf4) == (dtype, float8, True)
    assert reason in chosen.reason
    assert "load_in_4bit" in chosen.reason
    assert not choose_precision(asked, GPU, None).nf4
    on_cpu = choose_precision("auto", CPU, None, load_in_4bit=True)
    assert (on_cpu.dtype, on_cpu.nf4) == (torch.float32, True)
    has(AMPERE)
    with pytest.raises(RecipeError, match="has no float8"):
        choose_precision("float8", GPU, None, load_in_4bit=True)


def test_what_the_fused_layers_do_not_compute(has) -> None:
    def against(kind: str = "llama", device: torch.device = GPU, **lora: float) -> str | None:
        sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
        config = read_config({"model_type": kind, **heads, **sizes})
        return why_not_fused(config, LoraSection(**lora), device)

    has(HOPPER)
    assert against(r=64) is None
    assert "lora_dropout" in (against(lora_dropout=0.1) or "")
    assert "lora.r" in (against(r=65) or "")
    assert "normed" in (against("qwen3") or "")
    assert against(device=CPU) == "no GPU"
    has(AMPERE)
    assert "the card is older than Hopper" in (against() or "")
