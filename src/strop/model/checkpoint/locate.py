"""`model.model_name_or_path` -> a local model folder, whatever the recipe gave."""

from collections.abc import Callable
from pathlib import Path

from strop.errors import ModelError
from strop.model.checkpoint.fingerprint import fingerprint_file
from strop.model.checkpoint.gguf import CONVERTER_VERSION, convert_gguf
from strop.resolve import cache_dir, fetch_model, is_hub_id, nearest_sibling, resolve_package_path


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
        note: Called with a line before something that takes a while.
        needs_weights: False downloads none.

    Raises:
        RecipeError: It is none of these, or cannot be fetched; names the key and what to set.
        ModelError: A GGUF file that cannot be converted.
    """
    is_package = name_or_path.startswith("package:")
    path = resolve_package_path(name_or_path) if is_package else Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return _convert(path, note)
    if is_hub_id(name_or_path) and not path.parent.is_dir():
        return fetch_model(name_or_path, revision, needs_weights)
    raise ModelError(
        f"model.model_name_or_path: there is no folder {name_or_path} (looked from {Path.cwd()}), "
        f"and it is no hub id such as org/name{nearest_sibling(path)}"
    )


def _convert(file: Path, note: Callable[[str], None]) -> Path:
    if file.suffix.lower() != ".gguf":
        raise ModelError(f"model.model_name_or_path: {file} is a file; give the model's folder, or a .gguf file")
    key = f"{file.stem}-{fingerprint_file(file)[:12]}-v{CONVERTER_VERSION}"
    return convert_gguf(file, cache_dir() / "models" / key, note)
