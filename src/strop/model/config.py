"""The supported families: one architecture and the switches that set them apart.

Everything that a checkpoint's `config.json` determines is read here, once, into a `DecoderConfig`; the decoder never
looks at the file. To add a family, see docs/adding-a-model.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import ModelError

SUPPORTED = {
    "llama": "Llama 2 and 3.x, SmolLM2",
    "mistral": "Mistral, and Phi-3 in the split layout (unsloth/Phi-3-mini-4k-instruct)",
    "phi3": "Phi-3 and Phi-3.5 in the fused layout (microsoft/Phi-3-mini-4k-instruct), LongRoPE included",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3 (dense)",
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        theta: Base of the frequencies.
        width: Channels of a head that are rotated; the rest pass through.
        kind: default, linear, llama3 or longrope.
        parameters: What the kind needs: factor, low_freq_factor, short_factor, ... as in config.json.
        original_positions: Length the model was pre-trained on (llama3, longrope).
        attention_factor: Factor on cos and sin (longrope).
    """

    theta: float
    width: int
    kind: str
    parameters: Mapping[str, Any]
    original_positions: int
    attention_factor: float = 1.0

    @property
    def long_from(self) -> int | None:
        """Samples longer than this use other frequencies (longrope); None if length makes no difference."""
        return self.original_positions if self.kind == "longrope" else None


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
    """The decoder that a parsed config.json describes.

    Raises:
        ModelError: The family, or something the config asks for, is not supported; all reasons at once.
    """
    family = config.get("model_type")
    if family not in SUPPORTED:
        known = "\n".join(f"  {name:8} {what}" for name, what in SUPPORTED.items())
        raise ModelError(
            f"config.json: model_type {family!r} is not a family that strop can train. Supported:\n{known}"
        )
    _refuse_unsupported(config)
    heads = int(config["num_attention_heads"])
    layers = int(config["num_hidden_layers"])
    head_dim = int(config.get("head_dim") or (128 if family == "qwen3" else config["hidden_size"] // heads))
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderConfig(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-5 if family == "phi3" else 1e-6)),
        rope=_read_rope(config, head_dim),
        max_positions=int(config.get("max_position_embeddings", 2048)),
        sliding_windows=_read_windows(config, layers),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        fused=family == "phi3",
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    faults = [f"config.json: {key} is missing" for key in required if key not in config]
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        faults.append(f"config.json: hidden_act {config['hidden_act']!r} is not supported; only silu is")
    if config.get("attention_bias") and config["model_type"] in ("mistral", "phi3"):
        faults.append(f"config.json: attention_bias true is not supported for {config['model_type']}")
    faults += [
        f"config.json: {key} {config[key]} is not supported; only 0 is"
        for key in ("attention_dropout", "resid_pdrop", "embd_pdrop")
        if config.get(key)
    ]
    if faults:
        raise ModelError("\n".join(faults))


def _read_windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Mistral and Phi-3 slide in every layer; Qwen from max_window_layers on, and only with use_sliding_window."""
    window, family = config.get("sliding_window"), config["model_type"]
    if family in ("mistral", "phi3"):
        return (window,) * layers
    if family == "llama" or not config.get("use_sliding_window", False) or window is None:
        return (None,) * layers
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= config.get("max_window_layers", 28) else "full_attention" for i in range(layers)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _read_rope(config: Mapping[str, Any], head_dim: int) -> RopeConfig:
    """From transformers 5's `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if config["model_type"] == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # the name in early Phi-3 files
    if kind not in ("default", "linear", "llama3", "longrope"):
        raise ModelError(f"config.json: rope_type {kind!r} is not supported; default, linear, llama3 and longrope are")
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    max_positions = config.get("max_position_embeddings", 2048)
    original = parameters.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return RopeConfig(
        theta=float(parameters.get("rope_theta", config.get("rope_theta", 10000.0))),
        width=int(head_dim * partial),
        kind=kind,
        parameters=parameters,
        original_positions=int(original or max_positions),
        attention_factor=_longrope_attention_factor(parameters, max_positions, original) if kind == "longrope" else 1.0,
    )


def _longrope_attention_factor(parameters: Mapping[str, Any], positions: int, original: int | None) -> float:
    """sqrt(1 + ln s / ln L) for a context stretched s times beyond L (Ding et al. 2024, arXiv 2402.13753)."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    original = original or positions
    stretch = parameters.get("factor") or positions / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
