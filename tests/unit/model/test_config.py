"""What is read from a config.json, in the words of old and new files, and what is refused."""

import math
from typing import Any

import pytest

from strop.errors import ModelError
from strop.model.config import SUPPORTED, read_config, unused_keys

SHAPE: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}


def test_an_unsupported_family_lists_the_supported_ones() -> None:
    with pytest.raises(ModelError) as caught:
        read_config(SHAPE | {"model_type": "gemma3"})
    assert "'gemma3'" in str(caught.value)
    assert all(name in str(caught.value) for name in SUPPORTED)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": None}, "None"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_config(SHAPE | {"model_type": "llama"} | changes)


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"is_causal": False}, "is_causal False"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported for llama"),
        ("qwen2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("phi3", {"partial_rotary_factor": 0.52}, "must be even"),
        ("phi3", {"partial_rotary_factor": 1.5}, "at most 1"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2}}, "'linear' is not supported for phi3"),
        ("llama", {"rope_scaling": {"type": "su"} | LONG, "rope_parameters": {"rope_theta": 5}}, "different things"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling \[1\] must be an object"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ("llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "must be more than low_freq_factor"),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": "8"}}, "rope_scaling.factor '8' must be a number"),
        ("phi3", {"rope_scaling": LONG | {"long_factor": [1.0]}}, "long_factor has 1 numbers, but a head has 48 pairs"),
        ("phi3", {"rope_scaling": LONG | {"original_max_position_embeddings": 16}}, r"4096 by itself \(by default\)"),
        ("llama", {"rope_theta": None}, "rope_theta None must be"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "reads no layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window or sliding_window is not set"),
        ("qwen2", {"layer_types": ["full_attention"] * 3}, "must be a list of num_hidden_layers words"),
        ("mistral", {"num_attention_heads": 30}, r"no multiple of num_key_value_heads 8 \(what mistral has"),
        ("qwen2", {"sliding_window": 0, "use_sliding_window": True}, "sliding_window 0"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no' must be true or false"),
        ("llama", {"head_dim": 95}, "head_dim is 95: channels are rotated in pairs"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias true is not supported for qwen3"),
    ],
)
def test_what_transformers_computes_otherwise_is_refused_by_name(
    family: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        read_config(SHAPE | {"model_type": family} | changes)


@pytest.mark.parametrize(
    ("family", "changes", "kv_heads", "window"),
    [
        ("llama", {}, 32, None),
        ("mistral", {}, 8, 4096),
        ("mistral", {"num_key_value_heads": None, "sliding_window": None}, 32, None),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 32, 4096),
        ("qwen3", {"num_attention_heads": 64}, 32, None),
        ("phi3", {"num_attention_heads": 16}, 16, None),
    ],
)
def test_what_a_file_leaves_out_is_what_transformers_has(
    family: str, changes: dict[str, Any], kv_heads: int, window: int | None
) -> None:
    config = read_config(SHAPE | {"model_type": family} | changes)
    assert (config.num_kv_heads, set(config.sliding_windows)) == (kv_heads, {window})


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {"num_attention_heads": 0, "vocab_size": "x", "rope_theta": -1, "hidden_act": ["gelu"], "is_causal": None}
    with pytest.raises(ModelError) as caught:
        read_config(SHAPE | {"model_type": "llama"} | wrong)
    assert len(str(caught.value).splitlines()) == 5
    assert all(f"config.json: {key} " in str(caught.value) for key in wrong)


def test_keys_that_nobody_reads_are_named() -> None:
    assert unused_keys(SHAPE | {"model_type": "llama", "use_cache": True, "logit_scale": 2, "zeta": 1}) == [
        "logit_scale",
        "zeta",
    ]


def test_missing_keys_are_all_named() -> None:
    with pytest.raises(ModelError) as caught:
        read_config({"model_type": "llama", "hidden_size": 8})
    assert all(key in str(caught.value) for key in ("vocab_size", "num_hidden_layers", "intermediate_size"))


def test_old_and_new_names_of_rope() -> None:
    old = read_config(
        SHAPE | {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}
    )
    new = read_config(
        SHAPE | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5e5}}
    )
    assert (old.rope.kind, old.rope.theta) == (new.rope.kind, new.rope.theta) == ("linear", 5e5)


def test_phi3_with_long_contexts() -> None:
    """The 128k checkpoints: `su`, the original length beside the factors, and the paper's attention factor."""
    config = read_config(
        SHAPE
        | {
            "model_type": "phi3",
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        }
    )
    assert config.rope.kind == "longrope"
    assert config.rope.original_positions == 4096
    assert config.rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert config.fused


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, (4096,) * 4),
        ({"model_type": "mistral", "sliding_window": None}, (None,) * 4),
        ({"model_type": "phi3", "sliding_window": 2047}, (2047,) * 4),
        ({"model_type": "llama", "sliding_window": 4096}, (None,) * 4),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, (None,) * 4),
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2},
            (None, None, 64, 64),
        ),
    ],
)
def test_who_slides_where(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert read_config(SHAPE | changes).sliding_windows == windows
