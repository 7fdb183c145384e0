"""The files that a recipe names, and the examples in them, each with its file:line.

Paths, globs, `package:` paths and hub ids keep a fixed order; rows that cannot be used appear among the rest as Faults.
"""

import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from strop.data.examples import Example, Fault, Origin
from strop.data.readers import BOM, read_rows
from strop.data.row_shapes import Format, RowError, describe_shapes, shape_of, to_example
from strop.errors import DataError
from strop.resolve import DATA_SUFFIXES, is_hub_id, resolve_dataset, resolve_package_path

_ROWS_LOOKED_AT = 100


def find_files(specs: Sequence[str], key: str = "data.train_file") -> list[Path]:
    """The data files that a recipe's list names, each readable and of a known type.

    Args:
        specs: Files, globs (`**` included), `package:PKG/path` references and hub ids (`org/name[:split]`).
        key: The recipe key they come from, for messages.

    Raises:
        DataError: A file is missing, unreadable, a folder, of an unknown type or listed twice; or a glob
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
            raise DataError(
                f"{key}: {path} is listed twice (also as {first}), so its rows would count double; remove one"
            )
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
            raise DataError(f"{key}: no file matches {spec} (looked in {Path.cwd()})")
        return files
    hub_id, _, split = spec.partition(":")
    if is_hub_id(hub_id) and path.suffix not in DATA_SUFFIXES and not _exists(path.parent, key):
        return resolve_dataset(hub_id, split or None)
    raise DataError(f"{key}: there is no file {spec} (looked in {Path.cwd()})")


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
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise DataError(f"{key}: {path} has an unknown type; known types are {', '.join(DATA_SUFFIXES)}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; a UTF-8 byte order mark is not hashed, because it changes no row."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(len(BOM))
        digest.update(b"" if head == BOM else head)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def detect_format(files: Sequence[Path]) -> Format:
    """Detect the shape of the data from the first row in each file that has known keys.

    Raises:
        DataError: The first rows have no known keys, or two files have different shapes.
    """
    found: tuple[Format, Path] | None = None
    for path in files:
        shape = _shape_of_file(path)
        if found and shape != found[0]:
            raise DataError(
                f"{path} has the keys of {shape}, but {found[1]} those of {found[0]}; "
                "train on files of one shape, or set data.format if both can be read as one"
            )
        found = (shape, path)
    if found is None:
        raise DataError("there are no files to read")
    return found[0]


def _shape_of_file(path: Path) -> Format:
    keys: dict[str, Any] = {}
    faults: list[Fault] = []
    for number, row in enumerate(read_rows(path)):
        if isinstance(row, Fault):
            faults.append(row)
        elif shape := shape_of(row[1]):
            return shape
        else:
            keys |= row[1]
        if number + 1 >= _ROWS_LOOKED_AT:
            break
    if keys:
        raise DataError(
            f"{path}: no known shape; the keys are {', '.join(map(repr, keys))}. "
            f"Known shapes and their keys: {describe_shapes()}"
        )
    if faults:
        raise DataError(f"{path}: none of the first {len(faults)} rows can be read; the first: {faults[0]}")
    raise DataError(f"{path} has no rows")


def read_examples(files: Sequence[Path], format: Format) -> Iterator[tuple[Origin, Example] | Fault]:
    """Every row of every file, in order, as an example of the given shape or as a Fault, in constant memory.

    Raises:
        DataError: A file has no rows or cannot be read at all.
    """
    for path in files:
        row = None
        for row in read_rows(path):
            if isinstance(row, Fault):
                yield row
                continue
            origin, fields = row
            try:
                yield origin, to_example(fields, format)
            except RowError as error:
                yield Fault(origin, str(error))
        if row is None:
            raise DataError(f"{path} has no rows")
