"""What is read from a config.json, in the words of old and new files, and what is refused."""

import math
from typing import Any

import pytest

from strop.errors import ModelError
from strop.model.config import SUPPORTED, read_config

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
