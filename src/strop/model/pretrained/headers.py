"""Safetensors headers, checked by our own code before the library maps the file."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from strop.errors import ModelError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The only types that a base model's tensors may have."""

PACKED_BYTES = {"U8": 1}
"""One more in an NF4 checkpoint, whose matrices are bytes."""

MAX_HEADER_BYTES = 100 << 20
_LFS_POINTER = b"version https://git-lfs"


class StoredTensor(NamedTuple):
    """A tensor as its file's header describes it.

    Attributes:
        file: The safetensors file.
        dtype: Its type, such as BF16.
        shape: Its sizes.
        start: First byte of its values, counted from the file's start.
        end: The byte after the last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read_bytes(self, first: int = 0, most: int | None = None) -> bytes:
        """Its values as stored, or `most` bytes of them from the byte `first` on."""
        left = self.end - self.start - first
        with self.file.open("rb") as stream:
            stream.seek(self.start + first)
            return stream.read(left if most is None else min(most, left))


def check_safetensors(file: Path, types: dict[str, int] = ITEM_BYTES) -> dict[str, StoredTensor]:
    """Check that a safetensors header tells the truth about its file, and return its tensors by name.

    Checked: every size against the file's, types against `types`, shape times item size against the
    bytes claimed, and that the tensors fill the file without a gap or an overlap. Reads the header only.

    Raises:
        ModelError: The first fault, with the name of the file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelError(f"{file.name}: a Git LFS pointer, not the weights; run `git lfs pull` in the folder")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > size - 8:
            raise ModelError(f"{file.name}: truncated, or not a safetensors file ({size} bytes); download it again")
        if length > MAX_HEADER_BYTES:
            raise ModelError(f"{file.name}: a header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
        stream.seek(8)
        header = _parse(stream.read(length), file.name)
    _check_metadata(file.name, header.pop("__metadata__", {}))
    spans = sorted(_check_entry(file.name, name, entry, types) for name, entry in header.items())
    _check_layout(file.name, spans, size - 8 - length)
    values = 8 + length
    return {
        name: StoredTensor(file, header[name]["dtype"], tuple(header[name]["shape"]), values + start, values + end)
        for start, end, name in spans
    }


def load_strict_json(data: bytes) -> Any:
    """Parse JSON, refusing objects that repeat a key: two readers could each take a different one.

    Raises:
        ValueError: It is not JSON, or an object repeats a key.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _parse(data: bytes, file_name: str) -> dict[str, Any]:
    try:
        header = load_strict_json(data)
    except ValueError as error:
        raise ModelError(f"{file_name}: the header is not JSON ({error}); download the file again") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file_name}: the header is not a JSON object; download the file again")
    return header


def _check_metadata(file_name: str, metadata: Any) -> None:
    """The library takes nothing else."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{file_name}: __metadata__ must be an object of texts; download the file again")


def _check_entry(file_name: str, name: str, entry: Any, types: dict[str, int]) -> tuple[int, int, str]:
    """(first byte, byte after the last, name) of one tensor."""
    where = f"{file_name}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in tuple(types):
        raise ModelError(f"{where}: has type {entry['dtype']!r}; strop reads {', '.join(types)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise ModelError(f"{where}: shape {shape!r} or data_offsets {offsets!r} is invalid")
    claimed = math.prod(shape) * types[entry["dtype"]]
    if offsets[1] - offsets[0] != claimed:
        raise ModelError(f"{where}: {offsets[1] - offsets[0]} bytes, but its shape and type need {claimed}")
    return offsets[0], offsets[1], name


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _check_layout(file_name: str, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    position = 0
    for start, end, name in spans:
        if start != position:
            raise ModelError(f"{file_name}: tensor {name!r} starts at {start}, not at {position}: a gap or an overlap")
        position = end
    if position != data_bytes:
        what = "truncated" if position > data_bytes else "has bytes that belong to no tensor"
        raise ModelError(f"{file_name}: {what} (tensors need {position} bytes, it has {data_bytes}); download it again")
