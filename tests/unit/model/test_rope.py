"""The angles of positions are transformers', for each kind of RoPE, and on both sides of LongRoPE's border."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from strop.microbatch.tree import Tree
from strop.model.config import read_config
from strop.model.pretrained.weights import load_decoder
from strop.model.rope import RotaryTable
from tiny_models import FAMILIES, SHAPE, load_oracle, write_checkpoint

BORDER = 16  # original_max_position_embeddings of the tiny model with LongRoPE


def config_of(family: str, **changes: object) -> transformers.PretrainedConfig:
    settings: dict[str, Any] = SHAPE | FAMILIES[family] | changes
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


def theirs(family: str, length: int, **changes: object) -> tuple[Tensor, Tensor]:
    """Cos and sin of each position of a sample in transformers, (T, width / 2)."""
    config = config_of(family, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    cos, sin = model.model.rotary_emb(torch.zeros(1, length, 1), torch.arange(length)[None])
    return tuple(each[0, :, : each.shape[-1] // 2] for each in (cos, sin))  # type: ignore[return-value]


def ours(family: str, length: int, dtype: torch.dtype = torch.float32, **changes: object) -> tuple[Tensor, Tensor]:
    table = RotaryTable(read_config(config_of(family, **changes).to_dict()).rope)
    return table(torch.arange(length), torch.full((length,), length), dtype)


@pytest.mark.parametrize("family", ["llama2", "llama-linear-rope", "llama3", "phi3-partial", "qwen3"])
def test_angles_are_transformers(family: str) -> None:
    for mine, other in zip(ours(family, 300), theirs(family, 300), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("low", "high", "original"), [(2.0, 8.0, 64), (0.5, 4.0, 128), (1.0, 4.0, 8192)])
def test_llama3s_ramp_is_transformers(low: float, high: float, original: int) -> None:
    parameters = FAMILIES["llama3"]["rope_parameters"] | {
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    changes = {"rope_parameters": parameters, "head_dim": 64, "max_position_embeddings": 16384}
    for mine, other in zip(ours("llama3", 300, **changes), theirs("llama3", 300, **changes), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, BORDER - 1, BORDER, BORDER + 1, 100])
def test_longrope_takes_the_long_factors_beyond_its_border(length: int) -> None:
    for mine, other in zip(ours("phi3-longrope", length), theirs("phi3-longrope", length), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-6)


def test_a_shorter_sample_has_other_angles_than_a_longer_one() -> None:
    """The control: at the border the two sets of factors differ by far."""
    short, long = ours("phi3-longrope", BORDER), ours("phi3-longrope", BORDER + 1)
    assert (short[0] - long[0][:BORDER]).abs().max() > 0.1


@pytest.mark.parametrize("length", [BORDER, BORDER + 1])
def test_packed_samples_at_the_border_have_transformers_logits(length: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "phi3-longrope")
    lengths = (length, 5, length)
    ids = torch.randint(3, 128, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    decoder, oracle = load_decoder(folder, torch.float64), load_oracle(folder, torch.float64)
    with torch.no_grad():
        got = decoder.logits(decoder.packed_hidden_states(ids, Tree.of(lengths)))
        want = torch.cat([oracle(sample[None]).logits[0] for sample in ids.split(lengths)])
    assert (got - want).abs().max() < 1e-10 * want.abs().max()


def test_the_type_is_cast_after_the_angle_is_taken() -> None:
    """In bfloat16 positions beyond 256 would collide."""
    exact, _ = ours("llama2", 400)
    cast, _ = ours("llama2", 400, torch.bfloat16)
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast, exact.to(torch.bfloat16))
