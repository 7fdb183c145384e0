"""The tokenizer of a model folder, loaded exactly as its file defines it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from strop.errors import ModelError
from strop.resolve import MAX_CHAT_TEMPLATE_BYTES
from strop.terminal import one_line

_MOST_BYTES = 4  # of a character in UTF-8, and so of tokens that it is divided into


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder, exactly as its tokenizer.json defines it.

    AutoTokenizer is deliberately not used: for folders that name LlamaTokenizer, transformers 5 discards the file's
    normaliser and builds its own, and Phi-3's prompts then contain `What` where the model knows `▁What`.

    Args:
        folder: A vetted local folder with tokenizer.json and tokenizer_config.json.

    Returns:
        A `transformers.PreTrainedTokenizerFast` that neither pads nor truncates.

    Raises:
        ModelError: No tokenizer.json, an unreadable one, or a chat template over 64 KiB.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json; strop reads fast tokenizers only (convert it first)")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust reader raises plain Exception for a damaged file
        raise ModelError(f"{folder}: the tokenizer cannot be read: {one_line(error)}") from error
    source = chat_template_of(tokenizer)
    if source is not None and len(source.encode("utf-8", "replace")) > MAX_CHAT_TEMPLATE_BYTES:
        raise ModelError(f"{folder}: the chat template is over 64 KiB, more than any honest template has")
    # transformers drops this key while loading, but bos_to_prepend needs to know whether the folder sets it.
    tokenizer.init_kwargs["add_bos_token"] = _read_json(folder / "tokenizer_config.json").get("add_bos_token")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def chat_template_of(tokenizer: Any) -> str | None:
    """The chat template's source, or None; of several named ones, `default`, and `tool_use` for rows with tools."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        default, with_tools = source.get("default"), source.get("tool_use")
        source = default
        if isinstance(default, str) and isinstance(with_tools, str):
            source = f"{{% if tools %}}{_inside(with_tools)}{{% else %}}{_inside(default)}{{% endif %}}"
    return source if isinstance(source, str) else None


def _inside(source: str) -> str:
    """A template as a part of another: Jinja drops a newline at the end of a whole one, and after a block."""
    return f"{{{{- '' }}}}{source.removesuffix(chr(10))}"


def read_stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Ids that end generation: the tokenizer's eos and the ones that generation_config.json lists.

    Raises:
        ModelError: generation_config.json cannot be read, or lists something that is not a token id.
    """
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    path = folder / "generation_config.json"
    listed = _read_json(path).get("eos_token_id")
    for token in listed if isinstance(listed, list) else [listed]:
        if token is None:
            continue
        if type(token) is not int or not 0 <= token < len(tokenizer):
            raise ModelError(f"{path}: eos_token_id contains {token!r}; token ids are 0 to {len(tokenizer) - 1}")
        ids.add(token)
    return frozenset(ids)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not contain a JSON object")
    return value


def bos_to_prepend(tokenizer: Any) -> int | None:
    """The BOS id if this tokenizer prepends one to a text of its own accord, else None.

    tokenizer_config.json's `add_bos_token` overrides tokenizer.json's post-processor: this is how Llama tokenizers
    have always been configured.
    """
    bos = tokenizer.bos_token_id
    says = tokenizer.init_kwargs.get("add_bos_token")
    if bos is None or says is False:
        return None
    adds = tokenizer.backend_tokenizer.encode("x", add_special_tokens=True).ids[0] == bos
    return int(bos) if says or adds else None


def texts_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text; a character of several tokens belongs to the last of them."""

    def decode(start: int, end: int) -> str:
        text: str = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    texts: list[str] = []
    before = start = 0  # the tokens from `start` are not shown yet; those from `before` say if a space comes first
    for end in range(1, len(ids) + 1):
        known, text = decode(before, start), decode(before, end)
        if text.endswith("\ufffd") and end < len(ids) and end - start < _MOST_BYTES:
            texts.append("")
        else:
            texts.append(text[len(known) :])
            before, start = start, end
    return tuple(texts)


def special_text_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches text that this tokenizer would turn into a control token, such as `<|im_end|>` in a row."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    texts = [t.content for t in added if t.special or t.content.startswith(("<", "["))]
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
