"""Tokenizer folders with real chat templates: no hub, so a real BPE stands in and each family's tokens are added to it.

tests/fixtures/templates/README.md says where the templates come from.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

FIXTURES = Path(__file__).parents[1] / "fixtures"
TEMPLATES = FIXTURES / "templates"

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_SPLIT = _QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_HERMES_XML = "<tool_call> </tool_call> <tool_response> </tool_response>"
_THINK = "<think> </think>"
_LLAMA3 = (
    "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|> <|python_tag|> "
    "<|finetune_right_pad_id|>"
)
_MISTRAL = (
    "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] <s> </s> <unk>"
)
_GPT_OSS = "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>"
_DEEPSEEK = (
    "<｜User｜> <｜Assistant｜> <think> </think> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> "
    "<｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> "
    "<｜tool▁sep｜>"
)
_PHI4_MINI = (
    "<|endoftext|> <|end|> <|system|> <|user|> <|assistant|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|> "
    "<|tool_response|>"
)


@dataclass(frozen=True)
class Family:
    """What a model family's tokenizer has beside its vocabulary.

    Attributes:
        stops: What generation_config.json lists; the first is the token that ends an answer in the template.
        special: Control tokens, parted by spaces; `plain` ones are added tokens that are not special.
        base: The fixture whose vocabulary and merges stand in.
        split: The pre-tokenizer's pattern; empty keeps SmolLM2's (or Phi-3's SentencePiece) own.
        nfc: Whether text is normalised first.
        adds_bos: Whether the tokenizer puts BOS before a text of its own accord.
    """

    eos: str
    stops: tuple[str, ...]
    bos: str | None = None
    special: str = ""
    plain: str = ""
    base: str = "smollm2"
    split: str = ""
    nfc: bool = False
    adds_bos: bool = False
    unk: str = "<|endoftext|>"


def _qwen(plain: str) -> Family:
    return Family(
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        special="<|endoftext|> <|im_start|> <|im_end|>",
        plain=plain,
        split=_QWEN_SPLIT,
        nfc=True,
    )


def _llama(eos: str, stops: tuple[str, ...], special: str = "", plain: str = "") -> Family:
    return Family(
        eos, stops, "<|begin_of_text|>", f"{_LLAMA3} {special}".strip(), plain, split=_LLAMA_SPLIT, adds_bos=True
    )


_QWEN3 = _qwen(f"{_HERMES_XML} {_THINK}")
_LLAMA_3 = _llama("<|eot_id|>", ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"))
_PHI3 = Family("<|endoftext|>", ("<|end|>", "<|endoftext|>", "<|assistant|>"), "<s>", base="phi3", unk="<unk>")
FAMILIES: dict[str, Family] = {
    "qwen3": _QWEN3,
    "qwen3-2025-04": _QWEN3,
    "qwen3-instruct-2507": _QWEN3,
    "qwen3-thinking-2507": _QWEN3,
    "qwen2.5": _qwen(_HERMES_XML.partition(" <tool_response>")[0]),
    "qwq": _QWEN3,
    "llama3": _LLAMA_3,
    "llama3.1": _LLAMA_3,
    "llama3.2": _LLAMA_3,
    "mistral-v0.3": Family("</s>", ("</s>",), "<s>", _MISTRAL, base="phi3", adds_bos=True, unk="<unk>"),
    "hermes-3": _llama("<|im_end|>", ("<|im_end|>", "<|end_of_text|>"), "<|im_start|> <|im_end|>", _HERMES_XML),
    "gpt-oss": Family(
        "<|return|>",
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        "<|startoftext|>",
        _GPT_OSS,
        split=_LLAMA_SPLIT,
    ),
    "r1-distill": Family(
        "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        "<｜begin▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
        _DEEPSEEK,
        split=_LLAMA_SPLIT,
        adds_bos=True,
    ),
    "phi-4-mini": Family("<|endoftext|>", ("<|end|>", "<|endoftext|>"), "<|endoftext|>", _PHI4_MINI),
    "phi-4": Family("<|im_end|>", ("<|im_end|>",), "<|endoftext|>", "<|endoftext|> <|im_start|> <|im_sep|> <|im_end|>"),
    "phi-3.5": _PHI3,
    "phi-3": _PHI3,
    "smollm2": Family("<|im_end|>", ("<|im_end|>",), "<|im_start|>"),
    "smollm3": Family(
        "<|im_end|>",
        ("<|im_end|>",),
        special="<|im_start|> <|im_end|>",
        plain=f"{_HERMES_XML} {_THINK} <code> </code>",
        split=_LLAMA_SPLIT,
    ),
    # Its template writes no BOS, and its tokenizer adds one: apply_chat_template gives ids without.
    "zephyr": Family("</s>", ("</s>",), "<s>", "<s> </s> <unk>", adds_bos=True, unk="<unk>"),
    "gemma3": Family(
        "<eos>", ("<end_of_turn>", "<eos>"), "<bos>", "<bos> <eos> <start_of_turn> <end_of_turn>", adds_bos=True
    ),
    "granite-3.3": Family(
        "<|end_of_text|>",
        ("<|end_of_text|>",),
        "<|end_of_text|>",
        "<|start_of_role|> <|end_of_role|> <|end_of_text|> <|tool_call|> <|start_of_cite|> <|end_of_cite|>",
    ),
}
NAMES: tuple[str, ...] = tuple(FAMILIES)
TRL_NAMES: tuple[str, ...] = tuple(sorted(path.stem for path in (TEMPLATES / "trl_training").glob("*.jinja")))


def template_source(name: str) -> str:
    """A family's template, verbatim; of several named ones, `default`."""
    path = TEMPLATES / f"{name}.jinja"
    return (path if path.exists() else FIXTURES / f"{name.replace('-', '')}-tokenizer/chat_template.jinja").read_text(
        "utf-8"
    )


def trl_training_source(name: str) -> str:
    """TRL's training variant of a template, with `{% generation %}` marks."""
    return (TEMPLATES / "trl_training" / f"{name}.jinja").read_text("utf-8")


def tokenizer_folder(name: str, tmp_path: Path) -> Path:
    """A loadable folder: tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json."""
    family, folder = FAMILIES[name], tmp_path / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer_json(family)
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", _config(family))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    _write(folder / "generation_config.json", {"eos_token_id": [ids[stop] for stop in family.stops]})
    (folder / "chat_template.jinja").write_text(template_source(name), "utf-8")
    for path in TEMPLATES.glob(f"{name}-tool_use.jinja"):
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(path.read_text("utf-8"), "utf-8")
    return folder


def load(folder: Path) -> Any:
    """The folder's tokenizer, by transformers alone."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _config(family: Family) -> dict[str, Any]:
    tokens = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.eos, "unk_token": family.unk}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": family.adds_bos,
        "model_max_length": 8192,
        **{key: value for key, value in tokens.items() if value},
    }


@cache
def _base(name: str) -> str:
    return (FIXTURES / f"{name}-tokenizer/tokenizer.json").read_text("utf-8")


def _tokenizer_json(family: Family) -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads(_base(family.base))
    for special, texts in ((True, family.special), (False, family.plain)):
        for text in texts.split():
            _add(tokenizer, text, special)
    if family.nfc:
        tokenizer["normalizer"] = {"type": "NFC"}
    if family.split:
        tokenizer["pre_tokenizer"] = _byte_level(family.split)
    if family.adds_bos:
        tokenizer["post_processor"] = _bos_first(tokenizer, str(family.bos))
    return tokenizer


def _add(tokenizer: dict[str, Any], text: str, special: bool) -> None:
    known = next((token for token in tokenizer["added_tokens"] if token["content"] == text), None)
    if known is None:
        size = max(len(tokenizer["model"]["vocab"]), 1 + max(token["id"] for token in tokenizer["added_tokens"]))
        known = {"id": size, "content": text, "single_word": False, "lstrip": False, "normalized": False}
        tokenizer["added_tokens"].append(known)
    known |= {"special": special, "rstrip": False}


def _byte_level(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def _bos_first(tokenizer: dict[str, Any], bos: str) -> dict[str, Any]:
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == bos)
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, pair = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, pair],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
