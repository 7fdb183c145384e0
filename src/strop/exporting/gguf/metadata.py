"""What a GGUF file says beside its tensors: the decoder's shape, and tokenizer.json as llama.cpp reads it.

The shape is written for the architectures that llama.cpp computes in the same way; the vocabulary as pieces, their
types, scores or merges, and llama.cpp's name for how text is split.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strop.data.template import Template
from strop.errors import RecipeError
from strop.exporting.prompting import as_jinja
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


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_END_OF_TURN = ("<|im_end|>", "<|end|>", "<|eot_id|>", "<end_of_turn>", "<|endofturn|>")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_SPLITS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
    f"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|"
    + r"\p{N}"
    + _REST.replace(r"[\r\n]*", r"[\r\n/]*"): "tekken",
}
_WHOLE_WORDS = {"llama-bpe", "tekken"}  # for these, llama.cpp looks up a whole word before merging (`ignore_merges`)


def add_tokenizer(writer: Any, template: Template, vocab_size: int) -> None:
    """Write the tokenizer, with the chat template, BOS and stop tokens of training.

    Args:
        writer: A `gguf.GGUFWriter`.
        template: The training template.
        vocab_size: Number of embedding rows, which may exceed the number of tokens.

    Raises:
        RecipeError: strop knows no llama.cpp name for how it splits text.
    """
    data = json.loads(template.tokenizer.backend_tokenizer.to_str())
    if data["model"]["type"] != "BPE":
        raise RecipeError(f"--to gguf needs a BPE tokenizer, this one is {data['model']['type']}; use --to merged")
    pieces, types = pieces_and_types(data, vocab_size)
    if data["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores(data, pieces))
        writer.add_add_space_prefix(_has_space_prefix(data, template.name == "chat"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name_of_split(data))
        writer.add_token_merges([" ".join(merge) for merge in _merges(data)])
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    _add_special(writer, template)


def name_for_tokenizer(tokenizer: Any, name: str) -> str:
    """A model name that makes llama.cpp treat control tokens as training did.

    GGUF has no key for tokens that swallow the spaces after them. llama.cpp does so for Phi-3's, and recognises Phi-3
    only by "Phi-3" in the model's name.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    if any(token.rstrip for token in added):
        return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (Phi-3)"
    return re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)


def pieces_and_types(data: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Each token's text and GGUF type, by id; ids without a token are unused."""
    by_id = {index: piece for piece, index in data["model"]["vocab"].items()}
    added = {token["id"]: token for token in data["added_tokens"]}
    pieces = [added[i]["content"] if i in added else by_id.get(i, f"[PAD{i}]") for i in range(size)]
    fallback = bool(data["model"].get("byte_fallback"))
    unknown = (data["model"].get("unk_token") or "<unk>") if fallback else None

    def kind(index: int, piece: str) -> int:
        if piece == unknown:
            return _UNKNOWN
        if index in added:
            return _CONTROL if added[index]["special"] else _USER_DEFINED
        if index not in by_id:
            return _UNUSED
        return _BYTE if fallback and re.fullmatch("<0x[0-9A-F]{2}>", piece) else _NORMAL

    return pieces, [kind(index, piece) for index, piece in enumerate(pieces)]


def scores(data: Mapping[str, Any], pieces: list[str]) -> list[float]:
    """SentencePiece scores: the earlier a piece's first merge, the higher; pieces that no merge makes come last."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_merges(data)):
        rank.setdefault(left + right, number)
    return [-float(rank.get(piece, 10**6)) for piece in pieces]


def name_of_split(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text before merging.

    Raises:
        RecipeError: strop knows no name for it.
    """
    steps = data["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    name = None
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        name = "smollm"
    elif kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        name = "gpt-2"
    elif kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    if name is None or bool(data["model"].get("ignore_merges")) != (name in _WHOLE_WORDS):
        raise RecipeError(
            f"strop knows no llama.cpp name for how this tokenizer splits text ({', '.join(map(str, kinds))}); "
            "use --to merged and llama.cpp's own converter"
        )
    return name


def _merges(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in data["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _has_space_prefix(data: Mapping[str, Any], chat: bool) -> bool:
    """Whether llama.cpp should put a space before a text; it then puts one after every control token too.

    If the tokenizer adds one only at the beginning of the whole text (`first`), a chat gets none: it begins with a
    control token.
    """
    text = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    if '"prepend_scheme": "first"' in text:
        return not chat
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text


def _add_special(writer: Any, template: Template) -> None:
    """Write the ids with a role. GGUF has keys for up to three stop tokens; llama.cpp adds others it knows by text."""
    tokenizer = template.tokenizer
    stops = sorted(template.stop_ids, key=lambda i: (i != tokenizer.eos_token_id, i))
    eos, others = stops[0], stops[1:]
    others.sort(key=lambda i: tokenizer.convert_ids_to_tokens(i) not in _END_OF_TURN)
    ids = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: eos,
        writer.add_eot_token_id: others[0] if others else None,
        writer.add_eom_token_id: others[1] if len(others) > 1 else None,
        writer.add_pad_token_id: tokenizer.pad_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
    }
    for add, index in ids.items():
        if index is not None:
            add(int(index))
    writer.add_add_bos_token(template.bos_id is not None)
    writer.add_add_eos_token(False)
    writer.add_chat_template(as_jinja(template))
