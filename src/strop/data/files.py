"""Where data files are: paths, globs, `package:` paths and hub ids -> files, each readable and listed once."""

import glob
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.data.readers import BOM, refuse_unknown, saved_dataset_files
from strop.errors import DataError
from strop.resolve import data_suffix, expand, is_hub_id, resolve_dataset, resolve_package_path

Place = tuple[str, str | None, str | None]
"""A path, glob, hub id or package path; a split; a subset."""


def find(places: Sequence[Place], key: str) -> list[tuple[list[Path], str | None]]:
    """The files of each place, and which part of them is meant.

    Args:
        places: From a recipe's list.
        key: The recipe key they come from, for messages.

    Raises:
        DataError: A file is missing, unreadable, a folder or of an unknown type; or a glob matches nothing.
    """
    found = [_expand(*place, key) for place in places]
    for files, _ in found:
        for path in files:
            _require_readable(path, key)
    return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some rows of a file: from `start` up to `stop`, or to the end."""

    path: Path
    part: str | None = None
    start: int = 0
    stop: int | None = None

    def overlaps(self, other: "Stretch") -> bool:
        """Whether a row of the same part of the same file is in both."""
        before = self.stop is not None and self.stop <= other.start
        return not before and not (other.stop is not None and other.stop <= self.start)


def refuse_doubles(stretches: Sequence[Stretch], key: str) -> None:
    """Require that no row is listed twice.

    Raises:
        DataError: One is; a file may have two names.
    """
    seen: dict[tuple[str, str | None], list[Stretch]] = {}
    for stretch in stretches:
        others = seen.setdefault((os.path.realpath(stretch.path), stretch.part), [])
        if first := next((other for other in others if other.overlaps(stretch)), None):
            raise DataError(
                f"{key}: {stretch.path} is listed twice (also as {first.path}), so its rows would count double; "
                "remove one, or use repeat to count them double"
            )
        others.append(stretch)


def _expand(spec: str, split: str | None, subset: str | None, key: str) -> tuple[list[Path], str | None]:
    if spec.startswith("package:"):
        return [resolve_package_path(spec)], split
    path = expand(spec)
    if _exists(path, key):
        _refuse_subset(spec, subset, key)
        saved = saved_dataset_files(path, split) if path.is_dir() else None
        return ([path], split) if saved is None else (saved, None)
    if glob.has_magic(spec):
        _refuse_subset(spec, subset, key)
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if not match.is_dir()]
        if not files:
            raise DataError(f"{key}: no file matches {spec} (looked in {Path.cwd()})")
        return files, split
    hub_id, _, own_split = spec.partition(":")
    if is_hub_id(hub_id) and not data_suffix(path) and not _exists(path.parent, key):
        return resolve_dataset(hub_id, split or own_split or None, subset), None
    raise DataError(f"{key}: there is no file {spec} (looked in {Path.cwd()})")


def _refuse_subset(spec: str, subset: str | None, key: str) -> None:
    if subset:
        raise DataError(f"{key}: {spec}: subset={subset} is for hub ids; name the files of the subset instead")


def _exists(path: Path, key: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{key}: cannot access {path}: {error.strerror}") from error


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
    if not data_suffix(path):
        raise DataError(f"{key}: {refuse_unknown(path)}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; a UTF-8 byte order mark is not hashed, because it changes no row."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(len(BOM))
        digest.update(b"" if head == BOM else head)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
