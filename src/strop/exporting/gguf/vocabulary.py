"""tokenizer.json as GGUF keys: pieces, their types, scores or merges, and llama.cpp's name for how text is split."""

import json
import re
from collections.abc import Mapping
from typing import Any

from strop.data.template import Template
from strop.errors import RecipeError
from strop.exporting.prompting import as_jinja

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
