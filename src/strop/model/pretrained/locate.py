"""`model.model_name_or_path` -> a local model folder, and the fingerprint by which a base model is recognised.

A fingerprint takes well under a second for a checkpoint of any size.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from strop.errors import ModelError
from strop.model.pretrained.headers import MAX_HEADER_BYTES
from strop.resolve import (
    cache_dir,
    expand,
    fetch_model,
    is_hub_id,
    nearest_sibling,
    resolve_package_path,
    writing_to_cache,
)

BLOCK_BYTES = 4096
SAMPLED_BLOCKS = 64
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

_SNAPSHOT = re.compile(r"/models--([\w.-]+?--[\w.-]+)/snapshots/([0-9a-f]{40})\Z", re.ASCII)
"""Where the hub's cache keeps a model: its id and commit."""


def locate_model(
    name_or_path: str,
    revision: str | None = None,
    note: Callable[[str], None] = lambda line: None,
    needs_weights: bool = True,
) -> Path:
    """The local folder of a base model; not vetted yet (see `vet_model_folder`).

    A .gguf file is converted once into the cache; a hub id is downloaded once, weights and tokenizer only.

    Args:
        name_or_path: A folder, a .gguf file, `package:PKG/path/in/package` or a hub id `org/name`.
        revision: Branch, tag or commit of a hub id.
        note: Called with one line before a slow step.
        needs_weights: False skips the weights of a download.

    Raises:
        RecipeError: It cannot be downloaded; the message names the key and what to set.
        ModelError: It is none of these, or a GGUF file that cannot be converted.
    """
    is_package = name_or_path.startswith("package:")
    path = resolve_package_path(name_or_path) if is_package else expand(name_or_path)
    if path.is_dir():
        return path
    if path.is_file():
        return _convert(path, note)
    if is_hub_id(name_or_path) and not path.parent.is_dir():
        return fetch_model(name_or_path, revision, needs_weights)
    raise ModelError(
        f"model.model_name_or_path: there is no folder {name_or_path} (looked in {Path.cwd()}), "
        f"and it is not a hub id such as org/name{nearest_sibling(path)}"
    )


def shared_name(name_or_path: str, revision: str | None = None) -> tuple[str, str | None]:
    """How files that are given to others name a base model, and which revision of it.

    A folder of the hub's cache is named by its hub id and commit; anything else as it was, never by a place that strop
    chose on this machine.
    """
    path = expand(name_or_path)
    if path.is_dir() and (cached := _SNAPSHOT.search(path.resolve().as_posix())):
        return cached[1].replace("--", "/"), cached[2]
    return name_or_path, revision


def _convert(file: Path, note: Callable[[str], None]) -> Path:
    from strop.model.pretrained.gguf import CONVERTER_VERSION, convert_gguf  # imports torch

    if file.suffix.lower() != ".gguf":
        raise ModelError(f"model.model_name_or_path: {file} is a file; name the model's folder or a .gguf file")

    key = f"{file.stem}-{fingerprint_file(file)[:12]}-v{CONVERTER_VERSION}"
    with writing_to_cache():
        return convert_gguf(file, cache_dir() / "models" / key, note)


def fingerprint_folder(folder: Path) -> str:
    """A digest that tells one checkpoint from another.

    It is the SHA-256 over config.json and, for each *.safetensors file in order of name, its name, size,
    whole header and sampled bytes (see `fingerprint_file`). Another checkpoint, or the same one trained
    further, differs in nearly every weight and so in every sampled block. A single flipped bit
    most likely goes unnoticed, and this does not protect against forgery.

    Args:
        folder: A vetted model folder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"\n{file.name}\n{fingerprint_file(file)}\n".encode())
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(size, MAX_HEADER_BYTES)))
    return digest.hexdigest()


def fingerprint_tokenizer(folder: Path) -> str:
    """SHA-256 over what makes ids of texts and texts of messages: the tokenizer's files and the chat template.

    Args:
        folder: A vetted model folder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            digest.update(f"\n{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def fingerprint_file(file: Path) -> str:
    """SHA-256 over a file's size and 66 blocks of 4 KiB: 64 evenly spaced ones, the first and the last.

    Returns:
        64 hexadecimal digits. A file of up to 264 KiB is hashed whole.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(f"{size}\n".encode())
        if size <= (SAMPLED_BLOCKS + 2) * BLOCK_BYTES:
            digest.update(stream.read())
            return digest.hexdigest()
        last = size - BLOCK_BYTES
        for offset in (*(last * i // (SAMPLED_BLOCKS + 1) for i in range(SAMPLED_BLOCKS + 1)), last):
            stream.seek(offset)
            digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()
