"""Tiny random checkpoints of every supported family, written by transformers: the parity oracle's side."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {"model_type": "llama", "rope_parameters": _LLAMA3, "head_dim": 16},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-linear-rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    },
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": 6},
    "phi3-split": {"model_type": "mistral", "sliding_window": 2047, "num_key_value_heads": 4},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 4, "sliding_window": 2047},
    "phi3-window": {"model_type": "phi3", "sliding_window": 6},
    "phi3-longrope": {
        "model_type": "phi3",
        "rope_parameters": _LONGROPE,
        "original_max_position_embeddings": 16,
    },
    "phi3-partial": {
        "model_type": "phi3",
        "hidden_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 20},
}


def write_checkpoint(
    folder: Path,
    family: str,
    seed: int = 0,
    max_shard_size: str = "5GB",
    gain: float = 3.0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """A random checkpoint, every norm, bias and weight away from its trivial value.

    A product's outputs are `gain` times as large as its inputs. 3 makes attention sharp, so that a wrong key shows; it
    also makes gradients chaotic (bfloat16 moves them by 40%), so what is compared in bfloat16 takes 1.
    """
    torch.manual_seed(seed)
    settings = SHAPE | FAMILIES[family] | changes
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if "bias" in name else gain / parameter.shape[-1] ** 0.5)
                )
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def load_oracle(folder: Path, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """transformers' model in `dtype`, with its norms in float64 too where that is the type.

    transformers takes RMS statistics in float32 whatever the model's type; in a float64 model that is the one
    place that would limit the comparison to eight digits.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = _wide_norm.__get__(module)
    return model.eval()


def _wide_norm(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
