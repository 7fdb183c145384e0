"""Which files a recipe means: paths, globs, `package:` paths and hub ids, in a fixed order."""

import glob
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from strop.errors import DataError
from strop.resolve import DATA_SUFFIXES, is_hub_id, resolve_dataset, resolve_package_path

BOM = b"\xef\xbb\xbf"


def find_files(specs: Sequence[str], key: str = "data.train_file") -> list[Path]:
    """The data files behind a recipe's list, each of them readable and of a known type.

    Args:
        specs: Files, globs (`**` included), `package:PKG/path` references and hub ids (`org/name[:split]`).
        key: The recipe key they come from, for messages.

    Raises:
        DataError: A file is missing, unreadable, a folder, of an unknown type or named twice; a glob that
            matches nothing.
    """
    if not specs:
        raise DataError(f"{key} is empty: name at least one file, glob or hub id")
    found = [path for spec in specs for path in _expand(spec, key)]
    seen: dict[str, Path] = {}
    for path in found:
        _require_readable(path, key)
        first = seen.setdefault(os.path.realpath(path), path)
        if first is not path:
            raise DataError(f"{key}: {path} is named twice (also as {first}); its rows would count double")
    return found


def _expand(spec: str, key: str) -> list[Path]:
    if spec.startswith("package:"):
        return [resolve_package_path(spec)]
    path = Path(spec).expanduser()
    if _exists(path, key):
        return [path]
    if glob.has_magic(spec):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if not match.is_dir()]
        if not files:
            raise DataError(f"{key}: no file matches {spec} (looked from {Path.cwd()})")
        return files
    hub_id, _, split = spec.partition(":")
    if is_hub_id(hub_id) and path.suffix not in DATA_SUFFIXES and not _exists(path.parent, key):
        return resolve_dataset(hub_id, split or None)
    raise DataError(f"{key}: there is no file {spec} (looked from {Path.cwd()})")


def _exists(path: Path, key: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{key}: cannot look up {path}: {error.strerror}") from error


def _require_readable(path: Path, key: str) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise DataError(f"{key}: {path} is a folder; name its files, for example {path}/*.jsonl")
        if not stat.S_ISREG(mode):
            raise DataError(f"{key}: {path} is not a regular file")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{key}: cannot read {path}: {error.strerror}") from error
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise DataError(f"{key}: {path} is of an unknown type; known are {', '.join(DATA_SUFFIXES)}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; a UTF-8 byte order mark does not count, because it changes no row."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(len(BOM))
        digest.update(b"" if head == BOM else head)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
