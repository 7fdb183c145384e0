"""A decoder's shape as GGUF hyperparameters, for the architectures that llama.cpp computes in the same way."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strop.errors import RecipeError
from strop.model.config import DecoderConfig
from strop.model.rope import RotaryTable

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture for each family."""

_ROPE_KINDS = {
    "llama": ("default", "linear", "llama3"),
    "phi3": ("default", "longrope"),
    "qwen2": ("default", "linear"),
    "qwen3": ("default", "linear"),
}


def usable_context(config: DecoderConfig, longest: int) -> int:
    """The longest context, in tokens, at which llama.cpp computes the model as it was trained.

    For these architectures llama.cpp ignores the checkpoint's sliding window and attends to everything, and it picks
    LongRoPE's factors by the size of the context, not of the sample.

    Args:
        config: The model's config.
        longest: Length of the longest training sample, in tokens.

    Raises:
        RecipeError: Training had longer samples, or llama.cpp computes positions differently.
    """
    architecture, rope = ARCHITECTURES[config.family], config.rope
    if rope.kind not in _ROPE_KINDS[architecture]:
        raise RecipeError(f"llama.cpp does not support {rope.kind} RoPE for {architecture} models; use --to merged")
    if rope.width != config.head_dim and architecture != "phi3":
        raise RecipeError(
            f"llama.cpp rotates whole heads in {architecture} models, but this one rotates only a part; use --to merged"
        )
    windows = [window for window in config.sliding_windows if window]
    context = min([config.max_positions, *windows] + ([rope.long_from] if rope.long_from else []))
    if longest > context:
        raise RecipeError(
            f"llama.cpp computes this model as it was trained only up to {context} tokens (it ignores the sliding "
            "window and uses one set of LongRoPE factors at a time), but a training row had "
            f"{longest} tokens; use --to merged"
        )
    return context


def add_shape(writer: Any, config: DecoderConfig, context: int) -> None:
    """Write all hyperparameters that llama.cpp builds the model from."""
    import gguf

    rope = config.rope
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.theta)
    writer.add_rope_dimension_count(rope.width)
    if config.family == "phi3":
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(rope.original_positions)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope.parameters["factor"]))
    if rope.kind == "longrope":
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def rope_tensors(config: DecoderConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The divisor of each frequency: Llama 3's scaling, or both sets of LongRoPE factors."""
    rope = config.rope
    if rope.kind == "llama3":
        plain = 1.0 / rope.theta ** (torch.arange(0, rope.width, 2, dtype=torch.int64).float() / rope.width)
        yield "rope_freqs.weight", (plain / RotaryTable(rope).inv_freq).numpy()
    if rope.kind == "longrope":
        for kind in ("long", "short"):
            yield f"rope_factors_{kind}.weight", np.array(rope.parameters[f"{kind}_factor"], dtype=np.float32)
