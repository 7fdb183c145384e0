"""Inspect a model folder before any library opens it.

A folder can contain code (`auto_map`), pickles, links to other files and headers that lie about a file; trainers of
this kind have run code from each of them. Only data passes here, and all faults are reported at once.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from strop.errors import ModelError
from strop.model.pretrained.headers import ITEM_BYTES, PACKED_BYTES, StoredTensor, load_strict_json
from strop.model.pretrained.weight_files import check_weight_files
from strop.resolve import MAX_CHAT_TEMPLATE_BYTES

JSON_LIMITS = {
    "config.json": 1 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 8 << 20,
    "special_tokens_map.json": 1 << 20,
    "model.safetensors.index.json": 64 << 20,
}
"""Size limit of each JSON file in bytes; an honest one has a tenth of that."""

MAX_TOKENIZER_BYTES = 128 << 20

_CODE_KEYS = {"auto_map", "custom_code", "custom_pipelines", "trust_remote_code"}
_NATIVE_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
"""Microsoft's Phi-3 folders still name the code they came with before transformers had the model. Neither strop nor
transformers needs it, so the key is accepted, but only if that code is not in the folder."""
_ATTENTION_KEY = re.compile(r"_?attn_implementation\w*", re.ASCII)
_MODEL_TYPE = re.compile(r"[a-z0-9_]{1,64}")
_TOKENIZER_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}(Tokenizer|TokenizerFast|Backend)")
_NF4 = {
    "quant_method": ("bitsandbytes",),
    "bnb_4bit_quant_type": ("nf4",),
    "bnb_4bit_quant_storage": ("uint8", None),
}
"""What a quantization_config says of bitsandbytes' NF4, the one quantised format that strop reads."""


class Vetted(NamedTuple):
    """What vetting read of a folder: its config.json, and the tensors of its weights files, if it has any."""

    settings: dict[str, Any]
    tensors: dict[str, StoredTensor]


def vet_model_folder(folder: Path, needs_weights: bool = True) -> Vetted:
    """Inspect a model folder; nothing in it is run, unpickled or followed.

    Safetensors headers are checked against the files; the weights' values are not read. A folder without any
    tokenizer file passes, because only `load_tokenizer` needs one.

    Args:
        folder: A local folder, the user's own or in the hub's cache.
        needs_weights: False accepts a folder without weights.

    Returns:
        The parsed config.json, and what the weights files say that they hold.

    Raises:
        ModelError: Every fault found, each with its file and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"model.model_name_or_path: there is no folder {folder}")
    faults = list(_linked_outside(folder))
    parsed: dict[str, dict[str, Any]] = {}
    for name in JSON_LIMITS:
        try:
            content = _read_json(folder / name)
        except ModelError as error:
            faults.append(str(error))
            continue
        if content is not None:
            parsed[name] = content
            suspects = _without_native_code(content, folder) if name == "config.json" else content
            faults += [f"{name}: {fault}" for fault in _dangerous_keys(suspects)]
    if not (folder / "config.json").exists():
        faults.insert(0, "config.json: missing; name the folder of a model in Hugging Face's layout")
    config = parsed.get("config.json")
    if config is not None:
        faults += _config_faults(config)
    faults += _tokenizer_faults(folder, parsed.get("tokenizer_config.json", {}))
    types = ITEM_BYTES | PACKED_BYTES if config is not None and holds_nf4(config) else ITEM_BYTES
    tensors: dict[str, StoredTensor] = {}
    if needs_weights or any(folder.glob("*.safetensors")):
        faults += check_weight_files(folder, parsed.get("model.safetensors.index.json"), types, tensors)
    if faults or config is None:
        lines = "".join(f"\n  - {_printable(fault)}" for fault in dict.fromkeys(faults))
        raise ModelError(f"model.model_name_or_path: {folder} cannot be used as a base model:{lines}")
    return Vetted(config, tensors)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file."""
    if not path.exists():
        return None
    if not path.is_file():  # reading a pipe could wait forever
        raise ModelError(f"{path.name}: not a regular file")
    limit = JSON_LIMITS[path.name]
    if path.stat().st_size > limit:
        raise ModelError(f"{path.name}: {path.stat().st_size} bytes; the limit is {limit}")
    try:
        content = load_strict_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelError(f"{path.name}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: contains a JSON {type(content).__name__} instead of an object")
    return content


def _linked_outside(folder: Path) -> Iterator[str]:
    """Links that leave the folder, except into the blobs of the hub's own cache."""
    root = folder.resolve()
    inside = [root]
    if root.parent.name == "snapshots":
        inside.append(root.parent.parent / "blobs")
    for entry in sorted(folder.iterdir()):
        if not entry.is_symlink():
            continue
        try:
            target = entry.resolve(strict=True)
        except (OSError, RuntimeError):
            yield f"{entry.name}: a broken link; download the file again"
            continue
        if not any(target.is_relative_to(place) for place in inside):
            yield f"{entry.name}: links to {target}, outside the folder; copy the file here"


def _without_native_code(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config without an auto_map that names only Phi-3's own, absent code (see `_NATIVE_CODE`)."""
    named = config.get("auto_map")
    native = isinstance(named, dict) and named.items() <= _NATIVE_CODE.items() and config.get("model_type") == "phi3"
    if native and not any(folder.glob("*.py")):
        return {key: value for key, value in config.items() if key != "auto_map"}
    return config


def _dangerous_keys(content: Any) -> Iterator[str]:
    """Keys, at any depth, that could make a library run code or load anything outside this folder."""
    if isinstance(content, list):
        for value in content:
            yield from _dangerous_keys(value)
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key in _CODE_KEYS:
            yield f"{key} asks to run Python from the folder, which strop never does; use a model without it"
        elif key == "model_type" and not (isinstance(value, str) and _MODEL_TYPE.fullmatch(value)):
            yield f"model_type {value!r}: a model type has only lower-case letters, digits and _"
        elif _ATTENTION_KEY.fullmatch(key) and "/" in str(value):
            yield f"{key} {value!r} names a kernel to download; remove the key"
        yield from _dangerous_keys(value)


def _config_faults(config: dict[str, Any]) -> Iterator[str]:
    if "model_type" not in config:
        yield "config.json: model_type is missing"
    not_nf4 = {key: why_not_nf4(config.get(key)) for key in ("quantization_config", "compression_config")}
    for key, why in not_nf4.items():
        if config.get(key) is not None and why:
            types = ", ".join(ITEM_BYTES)
            yield (
                f"config.json: {key}: quantised weights; strop reads {types} and bitsandbytes' NF4, but here {why}. "
                "Use the original model"
            )


def holds_nf4(config: Mapping[str, Any]) -> bool:
    """Whether a config.json announces quantised weights; vetting lets no other kind through."""
    return config.get("quantization_config") is not None


def why_not_nf4(settings: Any) -> str | None:
    """What keeps a quantization_config from being bitsandbytes' NF4, if anything does."""
    if not isinstance(settings, dict):
        return "is no object"
    for key, allowed in _NF4.items():
        if settings.get(key) not in allowed:
            return f"{key} is {settings.get(key)!r}"
    return None if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else "load_in_4bit is not true"


def _tokenizer_faults(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    name = settings.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and _TOKENIZER_CLASS.fullmatch(name)):
        yield f"tokenizer_config.json: tokenizer_class {name!r} is not the name of a tokenizer class"
    tokenizer = folder / "tokenizer.json"
    if settings and not tokenizer.exists():
        yield "tokenizer.json: missing; strop reads fast tokenizers only (transformers can convert a slow one)"
    if tokenizer.exists() and (not tokenizer.is_file() or tokenizer.stat().st_size > MAX_TOKENIZER_BYTES):
        yield f"tokenizer.json: must be a regular file of at most {MAX_TOKENIZER_BYTES} bytes"
    for where, size in _template_sizes(folder, settings.get("chat_template")):
        if size > MAX_CHAT_TEMPLATE_BYTES:
            yield f"{where}: a chat template of {size} bytes; the limit is {MAX_CHAT_TEMPLATE_BYTES}"


def _template_sizes(folder: Path, inline: Any) -> Iterator[tuple[str, int]]:
    for path in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if path.is_file():
            yield path.name, path.stat().st_size
    named = inline if isinstance(inline, list) else [{"template": inline}]
    for text in (entry.get("template") for entry in named if isinstance(entry, dict)):
        if isinstance(text, str):
            yield "tokenizer_config.json", len(text.encode("utf-8", "replace"))


def _printable(text: str) -> str:
    """Escape control characters: text from a file must not move the cursor of a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
