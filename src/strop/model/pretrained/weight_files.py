"""The files of a folder's weights: are those that it names there, whole, and honest about what they hold?"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.errors import ModelError
from strop.model.pretrained.headers import StoredTensor, check_safetensors

_SHARD = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_weight_files(
    folder: Path, index: dict[str, Any] | None, types: dict[str, int], tensors: dict[str, StoredTensor]
) -> Iterator[str]:
    """Check the files of a folder's weights; yields what is wrong with them.

    Args:
        folder: The model's folder.
        index: Its model.safetensors.index.json, if there is one.
        types: Types that a tensor may have, and the bytes of an item.
        tensors: Receives every tensor that was found, by name.
    """
    whole = folder / "model.safetensors"
    if index is not None:
        yield from _shard_faults(folder, index, types, tensors)
        if whole.exists() and not all(tensor.file == whole for tensor in tensors.values()):
            yield f"{whole.name}: beside an index of other files, and programs differ in which they read; remove one"
    elif whole.exists():
        yield from _file_faults(whole, set(), types, tensors)
    elif not (folder / "model.safetensors.index.json").exists():
        yield _why_no_weights(folder)


def _why_no_weights(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"{pickles[0]}: a pickle can run code when read, so strop does not read it. If you trust "
            "it, convert it: model.save_pretrained(folder) in transformers writes safetensors"
        )
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return f"{ggufs[0]}: name the .gguf file itself, not its folder"
    return "no weights: the folder has neither model.safetensors nor model.safetensors.index.json"


def _shard_faults(
    folder: Path, index: dict[str, Any], types: dict[str, int], tensors: dict[str, StoredTensor]
) -> Iterator[str]:
    where = "model.safetensors.index.json"
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        yield f"{where}: weight_map is missing or empty; download the file again"
        return
    names_in: dict[str, set[str]] = {}
    for tensor, shard in shard_of.items():
        if not (isinstance(shard, str) and _SHARD.fullmatch(shard)):
            yield f"{where}: it puts {tensor} in {shard!r}, which is not a *.safetensors file of this folder"
            return
        names_in.setdefault(shard, set()).add(tensor)
    for shard, names in sorted(names_in.items()):
        yield from _file_faults(folder / shard, names, types, tensors)


def _file_faults(
    file: Path, expected: set[str], types: dict[str, int], tensors: dict[str, StoredTensor]
) -> Iterator[str]:
    """What is wrong with one weights file, which should contain at least the `expected` tensors."""
    if not file.is_file():
        yield f"{file.name}: missing or not a regular file; download it again"
        return
    try:
        found = check_safetensors(file, types)
    except (ModelError, OSError) as error:
        yield str(error)
        return
    if not found:
        yield f"{file.name}: contains no tensors; download it again"
    if lacking := sorted(expected - found.keys()):
        yield f"{file.name}: lacks {len(lacking)} tensors of the index, such as {lacking[0]}; download it again"
    if twice := sorted(found.keys() & tensors.keys()):
        yield f"{file.name}: {len(twice)} of its tensors are in another file too, such as {twice[0]}; remove one"
    tensors.update(found)
