"""The keys of a config.json, read with their type and range; all that is wrong is said at once."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from strop.errors import ModelError
from strop.recipe.wording import show

OBEYED = frozenset(
    {
        *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
        *("tie_word_embeddings", "attention_bias", "mlp_bias", "attention_dropout", "resid_pdrop", "embd_pdrop"),
        *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
        *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
        *("original_max_position_embeddings", "quantization_config", "compression_config", "auto_map"),
    }
)
"""What strop obeys or refuses by its value."""

NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),  # null is read as false there
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None, {}),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None, []),
    "mlp_layer_types": (None,),
    "mtp_layer_types": (None,),
    "fusion_config": (None, {}),
    "transformers_weights": (None,),
    "attribute_map": ({},),
    "decoder": (None,),
    "generator": (None,),
    "text_config": (None,),
    "default_rope_type": ("default",),
    "default_theta": (10000.0,),
    "is_heterogeneous": (False,),
    "_heterogeneity_spec": (None,),
    "_rope_type_labels": (None,),
    "sub_configs": ({},),
    "sub_configs_defaults": ({},),
    "ignore_keys_at_rope_validation": ([], None),
}
"""What transformers reads for these families and strop does not, and the values with which it changes nothing.
tests/numerics/test_config_sweep.py watches what transformers reads."""

HARMLESS = frozenset(
    {
        *("architectures", "transformers_version", "torch_dtype", "dtype", "name_or_path", "_name_or_path"),
        *("_commit_hash", "_attn_implementation", "_attn_implementation_internal", "attn_implementation"),
        *("_experts_implementation", "_experts_implementation_internal", "experts_implementation"),
        *("initializer_range", "use_cache", "pretraining_tp", "gradient_checkpointing", "_post_init_done"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id"),
        *("output_attentions", "_output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states"),
        *("chunk_size_feed_forward", "problem_type", "id2label", "label2id", "num_labels", "is_decoder"),
        *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "num_heads"),
        *("vision_aspect_ratio", "vision_feature_layer", "vision_feature_select_strategy"),
        *("add_cross_attention", "cross_attention_hidden_size", "finetuning_task", "prefix", "pruned_heads"),
        *("task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torchscript"),
        *("use_bfloat16", "rope_interleaved", "unsloth_fixed", "unsloth_version", "model_name"),
        # How to generate, which generation_config.json says today.
        *("temperature", "top_k", "top_p", "typical_p", "do_sample", "num_beams", "num_beam_groups", "max_length"),
        *("min_length", "early_stopping", "diversity_penalty", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "bad_words_ids"),
        *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
        *("begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff", "assistant_confidence_threshold"),
        *("assistant_lookbehind", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind"),
    }
)
"""What changes nothing that strop computes."""

_DTYPES = ("float64", "float32", "float16", "bfloat16")
_SAID: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architectures": ("a list of names", lambda value: _is_list_of(value, lambda each: isinstance(each, str))),
    "dtype": (f"one of {', '.join(_DTYPES)}", lambda value: value in _DTYPES),
    "torch_dtype": (f"one of {', '.join(_DTYPES)}", lambda value: value in _DTYPES),
    "bos_token_id": ("a token id", lambda value: is_integer(value)),
    "pad_token_id": ("a token id", lambda value: is_integer(value)),
    "eos_token_id": ("one token id or a list of them", lambda v: is_integer(v) or _is_list_of(v, is_integer)),
    "id2label": ("an object", lambda value: isinstance(value, dict)),
    "label2id": ("an object", lambda value: isinstance(value, dict)),
    "initializer_range": ("a number", lambda value: value == 0 or is_positive(value)),
}
"""Harmless keys that transformers reads nevertheless: with anything else there it does not load the folder, and so none
of its exports either."""

_AGAIN = "correct it, or download the file again"


class Keys:
    """The keys of a config.json.

    A value of the wrong type or out of range is noted in `faults`, and some value in range stands for it, so that
    reading goes on and every fault is found.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.faults: list[str] = []

    def fault(self, text: str) -> None:
        """Note what is wrong; `text` begins with the key."""
        self.faults.append(f"config.json: {text}")

    def raise_faults(self) -> None:
        """Say all that was wrong so far.

        Raises:
            ModelError: Something was.
        """
        if self.faults:
            raise ModelError("\n".join(dict.fromkeys(self.faults)))

    def integer(self, key: str, default: int | None, high: int, low: int = 1) -> int:
        """A whole number from `low` to `high`; `default` if it is absent or null, and None if it must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if key not in self.values:
            self.fault(f"{key} is missing; download the file again")
        elif isinstance(value, int) and is_integer(value) and low <= value <= high:
            return value
        else:
            self.fault(f"{key} {show(value)} must be a whole number from {low:,} to {high:,}; {_AGAIN}")
        return low

    def flag(self, key: str) -> bool:
        """True or false; false if it is absent."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            self.fault(f"{key} {show(value)} must be true or false; {_AGAIN}")
        return value is True

    def number(self, key: str, default: float | None, among: Mapping[str, Any] | None = None, where: str = "") -> float:
        """A finite number above 0.

        Args:
            key: The key.
            default: Its value where it is absent; None if it must be there.
            among: Where to look, if not in the file's own keys.
            where: What that place is called, with a dot after it.
        """
        values = self.values if among is None else among
        value = values.get(key, default)
        if is_positive(value):
            return float(value)
        if key not in values and default is None:
            self.fault(f"{where}{key} is missing; download the file again")
            return 1.0
        self.fault(f"{where}{key} {show(value)} must be a number above 0; {_AGAIN}")
        return 1.0

    def refuse_unreadable(self, vocab_size: int) -> None:
        """Note each harmless key with a value that transformers does not load; null is one that it does."""
        for key, (what, is_that) in _SAID.items():
            value = self.values.get(key)
            if value is not None and not is_that(value):
                self.fault(f"{key} {show(value)} must be {what}, or null; {_AGAIN}")
        pad = self.values.get("pad_token_id")
        if isinstance(pad, int) and not -vocab_size <= pad < vocab_size:
            self.fault(f"pad_token_id {show(pad)} is beyond vocab_size, which is {vocab_size}; set it to null")

    def unused(self) -> list[str]:
        """Keys of which neither strop nor transformers' model of the family makes anything."""
        return sorted(key for key in self.values if key not in OBEYED | HARMLESS | NOT_OBEYED.keys())

    def refuse_not_obeyed(self) -> None:
        """Note every key that transformers' model would obey and strop would not."""
        for key, nothing in NOT_OBEYED.items():
            if key in self.values and self.values[key] not in nothing:
                self.fault(
                    f"{key} {show(self.values[key])} is not supported: it changes the model in transformers, and strop "
                    "does not have it; remove the key, or use a model without it"
                )


def is_integer(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """A number above 0 that float32 can hold; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e38 and math.isfinite(value)


def _is_list_of(value: Any, is_one: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_one, value))
