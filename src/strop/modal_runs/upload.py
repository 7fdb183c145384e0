"""Uploads the local files and model folders that a recipe names to the inputs Volume, each one once.

Uploads are named by their content: `inputs/SHA-256/name` for a file and `models/SHA-256/` for a model folder. So a
second launch finds everything already there, and a changed file gets a new name.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from strop.data.files import find
from strop.data.sources import read_split
from strop.digest import sha256_of_file
from strop.errors import RecipeError
from strop.modal_runs.remote_run import UPLOADED
from strop.readable import counted
from strop.recipe import DataFile, Recipe
from strop.resolve import MODEL_FILES, data_suffix, expand, is_hub_id, resolve_package_path

if TYPE_CHECKING:
    import modal


@dataclass(frozen=True)
class Inputs:
    """A recipe whose local names were replaced by places on the Volume.

    Attributes:
        recipe: Has an `UPLOADED` name for everything on this machine; hub ids are unchanged.
        files: Local files by their place on the Volume.
        digest: Hash of what the recipe trains on: the contents of local files, the names of hub ids.
    """

    recipe: Recipe
    files: dict[str, Path]
    digest: str


def collect(recipe: Recipe) -> Inputs:
    """Find and hash the local files that a recipe names.

    Raises:
        RecipeError, DataError: A name is neither a local path nor a hub id.
    """
    files: dict[str, Path] = {}
    name = add_model(recipe.model.model_name_or_path, files)
    data = {
        key: tuple(_add_rows(spec, f"data.{key}", files) for spec in getattr(recipe.data, key))
        for key in ("train_file", "validation_file")
    }
    rewritten = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"model_name_or_path": name}),
            "data": recipe.data.model_copy(update=data),
        }
    )
    digest = hashlib.sha256(repr((name, recipe.model.revision, sorted(data.items()))).encode())
    return Inputs(rewritten, files, digest.hexdigest())


def upload_files(files: Mapping[str, Path], volume: "modal.Volume", note: Callable[[str], None]) -> int:
    """Upload the files that the Volume does not have yet; returns the number of bytes sent."""
    there = {place: size for folder in {_folder(place) for place in files} for place, size in _list(volume, folder)}
    missing = {place: file for place, file in files.items() if there.get(place) != file.stat().st_size}
    size = sum(file.stat().st_size for file in missing.values())
    if missing:
        note(f"uploading {counted(len(missing), 'file')}, {size / 1e6:,.1f} MB")
        with volume.batch_upload(force=True) as batch:
            for place, file in missing.items():
                batch.put_file(file, f"/{place}")
    else:
        note("nothing to upload: the Volume already has everything")
    return size


def add_model(spec: str, files: dict[str, Path]) -> str:
    """Add a model to the files to upload; returns its `UPLOADED` name, or the hub id unchanged.

    Raises:
        RecipeError: It is neither a local path nor a hub id.
    """
    path = resolve_package_path(spec) if spec.startswith("package:") else expand(spec)
    if path.is_file():
        return _add_file(path, files)
    if path.is_dir():
        return UPLOADED + add_folder("models", path, MODEL_FILES, files)
    if is_hub_id(spec) and not path.parent.is_dir():
        return spec
    raise RecipeError(
        f"model.model_name_or_path: there is no folder {spec} (looked in {Path.cwd()}), and it is not a hub id"
    )


def add_folder(root: str, path: Path, patterns: Sequence[str], files: dict[str, Path]) -> str:
    """Add a folder's files to the files to upload; returns its place, a hash of names and contents."""
    parts = sorted({part for pattern in patterns for part in path.glob(pattern) if part.is_file()})
    contents = [(part.name, sha256_of_file(part)) for part in parts]
    folder = f"{root}/{hashlib.sha256(repr(contents).encode()).hexdigest()}"
    files |= {f"{folder}/{part.name}": part for part in parts}
    return folder


def _add_rows(spec: str | DataFile, key: str, files: dict[str, Path]) -> str | DataFile:
    """Add a source's files to the files to upload; returns it with their place, or unchanged if it is on the hub."""
    entry = DataFile(path=spec) if isinstance(spec, str) else spec
    path = expand(entry.path)
    is_here = entry.path.startswith("package:") or path.exists() or path.parent.is_dir()
    if is_hub_id(entry.path.partition(":")[0]) and not data_suffix(path) and not is_here:
        return spec
    name, *_ = read_split(entry.split, key)
    [(found, part)] = find([(entry.path, name, entry.subset)], key)
    placed = _add_file(found[0], files) if len(found) == 1 else _add_files(found, files)
    if isinstance(spec, str):
        return placed
    bounds = (entry.split or "").removeprefix(name or "")
    return spec.model_copy(update={"path": placed, "split": (part or "") + bounds or None})


def _add_file(path: Path, files: dict[str, Path]) -> str:
    place = f"inputs/{sha256_of_file(path)}/{path.name}"
    files[place] = path
    return UPLOADED + place


def _add_files(paths: Sequence[Path], files: dict[str, Path]) -> str:
    """Several files of one source, in a folder of their own and in their order; returns a glob."""
    folder = (
        f"inputs/{hashlib.sha256(repr([(path.name, sha256_of_file(path)) for path in paths]).encode()).hexdigest()}"
    )
    files |= {f"{folder}/{number:05}-{path.name}": path for number, path in enumerate(paths)}
    return f"{UPLOADED}{folder}/*"


def _list(volume: "modal.Volume", folder: str) -> list[tuple[str, int]]:
    from modal.exception import NotFoundError

    try:
        return [(entry.path.strip("/"), entry.size) for entry in volume.listdir(f"/{folder}")]
    except (NotFoundError, FileNotFoundError):
        return []


def _folder(place: str) -> str:
    return place.rpartition("/")[0]
