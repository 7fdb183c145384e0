"""The supported families: one architecture and the switches that set them apart.

Everything that a checkpoint's `config.json` determines is read here, once, into a `DecoderConfig`; the decoder never
looks at the file. To add a family, see docs/adding-a-model.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import ModelError
from strop.model.config_keys import Keys
from strop.model.rope_config import RopeConfig, read_rope
from strop.recipe.wording import show

SUPPORTED = {
    "llama": "Llama 2 and 3.x, SmolLM2",
    "mistral": "Mistral, and Phi-3 in the split layout (unsloth/Phi-3-mini-4k-instruct)",
    "phi3": "Phi-3 and Phi-3.5 in the fused layout (microsoft/Phi-3-mini-4k-instruct), LongRoPE included",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3 (dense)",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder and the switches of its family."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    sliding_windows: tuple[int | None, ...]
    """Attention window of each layer; None means that a token sees everything before it."""
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    fused: bool
    """The checkpoint stores qkv_proj and gate_up_proj instead of q, k, v and gate, up."""


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a parsed config.json describes: what transformers' model of the family computes.

    Raises:
        ModelError: The family, or something the config asks for, is not supported, or a value is none that the key
            can have; all reasons at once.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in SUPPORTED:
        known = "\n".join(f"  {name:8} {what}" for name, what in SUPPORTED.items())
        raise ModelError(
            f"config.json: model_type {show(family)} is not a family that strop can train. Supported:\n{known}"
        )
    keys = Keys(config)
    keys.refuse_not_obeyed()
    _refuse_unsupported(keys, family)
    read = _read(keys, family)
    keys.refuse_unreadable(read.vocab_size)
    keys.raise_faults()
    return read


def unused_keys(config: Mapping[str, Any]) -> list[str]:
    """Keys of a config.json that change nothing, neither here nor in transformers' model of the family."""
    return Keys(config).unused()


def _read(keys: Keys, family: str) -> DecoderConfig:
    hidden = keys.integer("hidden_size", None, 1 << 20)
    heads = keys.integer("num_attention_heads", None, 1 << 16)
    layers = keys.integer("num_hidden_layers", None, 1 << 12)
    head_dim = keys.integer("head_dim", 128 if family == "qwen3" else max(1, hidden // heads), 1 << 14)
    max_positions = keys.integer("max_position_embeddings", _MAX_POSITIONS[family], 1 << 40)
    attention_bias = keys.flag("attention_bias")
    mlp_bias = keys.flag("mlp_bias")
    return DecoderConfig(
        family=family,
        vocab_size=keys.integer("vocab_size", None, 1 << 26),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size", None, 1 << 24),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_read_kv_heads(keys, family, heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5 if family == "phi3" else 1e-6),
        rope=read_rope(keys, family, head_dim, max_positions),
        max_positions=max_positions,
        sliding_windows=_read_windows(keys, family, layers),
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family == "qwen3",
        fused=family == "phi3",
    )


_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768, "phi3": 4096}
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
"""transformers' defaults for a file that leaves them out; in the other families as many as there are heads."""


def _read_kv_heads(keys: Keys, family: str, heads: int) -> int:
    absent = "num_key_value_heads" not in keys.values
    found = keys.integer("num_key_value_heads", _KV_HEADS.get(family, heads) if absent else heads, 1 << 16)
    if not keys.faults and heads % found:
        said = f" (what {family} has if the key is missing)" if absent else ""
        keys.fault(f"num_attention_heads {heads} is no multiple of num_key_value_heads {found}{said}")
    return found


def _refuse_unsupported(keys: Keys, family: str) -> None:
    config = keys.values
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        keys.fault(f"hidden_act {show(config['hidden_act'])} is not supported; only silu is")
    for key, without in (("attention_bias", ("mistral", "phi3")), ("mlp_bias", SUPPORTED.keys() - {"llama"})):
        if config.get(key) is True and family in without:
            keys.fault(f"{key} true is not supported for {family}")
    for key in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
        if config.get(key):
            keys.fault(f"{key} {show(config[key])} is not supported; only 0 is")


def _read_windows(keys: Keys, family: str, layers: int) -> tuple[int | None, ...]:
    """Mistral and Phi-3 slide in every layer; Qwen from max_window_layers on, and only with use_sliding_window."""
    usual = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096}.get(family) if "sliding_window" not in keys.values else None
    window: int | None = usual
    if keys.values.get("sliding_window") is not None:
        window = keys.integer("sliding_window", None, 1 << 40)
    if family == "llama" or (family.startswith("qwen") and not keys.flag("use_sliding_window")):
        window = None
    first = 0
    if family.startswith("qwen"):
        first = keys.integer("max_window_layers", 28, 1 << 40, low=0)
    kinds = [_SLIDING if window is not None and i >= first else _FULL for i in range(layers)]
    said = keys.values.get("layer_types")
    if said is not None and said != kinds:
        kinds = _read_layer_types(keys, family, said, layers, window)
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _read_layer_types(keys: Keys, family: str, said: Any, layers: int, window: int | None) -> list[str]:
    """Layer types other than the family's usual ones: Qwen takes them, if they can be had."""
    if not isinstance(said, list) or len(said) != layers or not all(kind in (_SLIDING, _FULL) for kind in said):
        keys.fault(
            f"layer_types {show(said)} must be a list of num_hidden_layers words, {_FULL} or {_SLIDING}; correct it"
        )
    elif not family.startswith("qwen"):
        keys.fault(
            f"layer_types: transformers' model of {family} has one sliding_window for all layers and reads no "
            "layer_types; remove the key, or set sliding_window as they say"
        )
    elif window is None and _SLIDING in said:
        keys.fault(f"layer_types asks for {_SLIDING}, but use_sliding_window or sliding_window is not set; set both")
    else:
        return said
    return [_FULL] * layers
