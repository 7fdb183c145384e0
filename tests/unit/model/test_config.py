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
        ("llama", {"pad_token_id": 32064}, "pad_token_id 32064 is beyond vocab_size, which is 32064; set it to null"),
        ("llama", {"pad_token_id": "x"}, "pad_token_id 'x' must be a token id, or null"),
        ("llama", {"eos_token_id": [2, "x"]}, "must be one token id or a list of them, or null"),
        ("llama", {"torch_dtype": "int3"}, "torch_dtype 'int3' must be one of float64"),
        ("llama", {"architectures": 0}, "architectures 0 must be a list of names"),
        ("llama", {"id2label": []}, "must be an object"),
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


def test_what_real_files_say_beside_is_accepted() -> None:
    beside = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "eos_token_id": [2, 7],
        "bos_token_id": 1,
    }
    read_config(SHAPE | {"model_type": "llama", "pad_token_id": -1, "initializer_range": 0.02, "dtype": None} | beside)


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


def _shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, eps: float) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "attention_dropout": 0.0,
    }


_QWEN = {"use_sliding_window": False, "max_window_layers": 28, "tie_word_embeddings": True, "rope_theta": 1e6}
_PHI = {"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "pad_token_id": 32000, "rope_theta": 10000.0}
_LLAMA31 = LLAMA3 | {"original_max_position_embeddings": 8192, "factor": 8.0, "low_freq_factor": 1.0}
# Abridged from the models' own config.json: every key that decides something.
REAL: dict[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "llama", "rope_scaling": None, "pretraining_tp": 1, "pad_token_id": 0}
    | _shape(4096, 11008, 32, 32, 32, 32000, 1e-5),
    "Llama 3.1": {
        "model_type": "llama",
        "rope_scaling": _LLAMA31,
        "rope_theta": 500000.0,
        "eos_token_id": [128001, 128009],
    }
    | {"max_position_embeddings": 131072, "attention_bias": False, "mlp_bias": False}
    | _shape(4096, 14336, 32, 32, 8, 128256, 1e-5),
    "SmolLM2": {"model_type": "llama", "rope_interleaved": False, "is_llama_config": True, "tie_word_embeddings": True}
    | {"rope_scaling": None, "rope_theta": 100000, "pad_token_id": 2, "transformers.js_config": {"kv_cache_dtype": {}}}
    | _shape(576, 1536, 30, 9, 3, 49152, 1e-5),
    "Mistral 7B v0.3": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6}
    | _shape(4096, 14336, 32, 32, 8, 32768, 1e-5),
    "Mistral Nemo": {"model_type": "mistral", "sliding_window": None, "head_dim": 128, "rope_theta": 1e6}
    | _shape(5120, 14336, 40, 32, 8, 131072, 1e-5),
    "Qwen2.5": {"model_type": "qwen2", "sliding_window": 32768} | _QWEN | _shape(896, 4864, 24, 14, 2, 151936, 1e-6),
    "Qwen3": {"model_type": "qwen3", "sliding_window": None, "head_dim": 128, "attention_bias": False}
    | {"rope_scaling": None, "layer_types": ["full_attention"] * 28}
    | _QWEN
    | _shape(1024, 3072, 28, 16, 8, 151936, 1e-6),
    "Phi-3 mini": {"model_type": "phi3", "sliding_window": 2047, "rope_scaling": None, "auto_map": {}}
    | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    | _PHI
    | _shape(3072, 8192, 32, 32, 32, 32064, 1e-5),
    "Phi-3 mini 128k": {"model_type": "phi3", "sliding_window": 262144, "rope_scaling": LONG | {"type": "longrope"}}
    | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    | _PHI
    | _shape(3072, 8192, 32, 32, 32, 32064, 1e-5),
    "Phi-4 mini": {"model_type": "phi3", "sliding_window": 262144, "rope_scaling": {"type": "longrope"} | LONG}
    | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "full_attn_mod": 1, "lm_head_bias": False}
    | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "interpolate_factor": 1}
    | _PHI
    | _shape(3072, 8192, 32, 24, 8, 200064, 1e-5),
}


@pytest.mark.parametrize("name", REAL)
def test_the_files_of_published_models_are_accepted(name: str) -> None:
    config = read_config(REAL[name])
    assert config.rope.width == (96 if name.startswith("Phi") else config.head_dim)
    assert set(config.sliding_windows) == ({REAL[name].get("sliding_window")} if "Phi" in name else {None})


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_slides_from_layer_28_on_if_the_file_does_not_say(family: str) -> None:
    asked = {"model_type": family, "num_hidden_layers": 30, "use_sliding_window": True, "sliding_window": 64}
    config = read_config(SHAPE | {"num_key_value_heads": 32} | asked)
    assert config.sliding_windows == (*[None] * 28, 64, 64)


@pytest.mark.parametrize(
    ("family", "biases", "norms"),
    [("llama", (False, False), False), ("qwen2", (True, False), False), ("qwen3", (False, False), True)],
)
def test_what_a_family_has_without_being_asked(family: str, biases: tuple[bool, bool], norms: bool) -> None:
    config = read_config(SHAPE | {"model_type": family, "num_key_value_heads": 32})
    assert (config.qkv_bias, config.output_bias) == biases
    assert config.qk_norm is norms
    with_bias = read_config(SHAPE | {"model_type": family, "num_key_value_heads": 32, "attention_bias": True})
    assert with_bias.qkv_bias
    assert with_bias.output_bias is (family != "qwen2")


def test_what_transformers_takes_if_a_file_does_not_say() -> None:
    """Of the class of each family's config."""
    kv = {"num_key_value_heads": 32}
    assert read_config(SHAPE | kv | {"model_type": "qwen3"}).head_dim == 128
    assert read_config(SHAPE | {"model_type": "llama"}).head_dim == 96
    assert read_config(SHAPE | {"model_type": "phi3"}).rms_norm_eps == 1e-5
    assert read_config(SHAPE | {"model_type": "llama"}).rms_norm_eps == 1e-6
