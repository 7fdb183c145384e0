"""Tokenised samples in a memory-mapped folder, built once for each combination of data and settings.

    <cache>/tokens/<key>/
        input_ids.bin   int32   all samples one after the other
        learned.bin     bool    the same shape: is this token a target of the loss?
        offsets.bin     int64   where each sample begins, and the end of the last
        rows.bin        ROW     where each sample comes from, hashes of its prompt and content, flags
        faults.txt              rows that were skipped, with their reasons
        manifest.json           counts, report and SHA-256 of the files; written last

A folder whose manifest does not match its files is not used but rebuilt.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strop.data.examples import Fault, Origin
from strop.data.row_shapes import Format
from strop.errors import DataError

CODE_VERSION = 1  # raise it when the same rows and settings would give other tokens
ROW = np.dtype([("file", "<u4"), ("line", "<u4"), ("flags", "u1"), ("prompt", "<u8"), ("content", "<u8")])
FILES = {
    "input_ids.bin": np.dtype("<i4"),
    "learned.bin": np.dtype("?"),
    "offsets.bin": np.dtype("<i8"),
    "rows.bin": ROW,
}

TRUNCATED, STOP_CUT, SPECIAL_TEXT = 1, 2, 4


class BadRowsError(DataError):
    """Rows that cannot be used, all of them in `faults`."""

    def __init__(self, message: str, faults: Sequence[Fault]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Split:
    """One side of a split of the rows by hash: their order does not matter, and duplicates stay together."""

    part: Literal["train", "validation"]
    percentage: float
    seed: int


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What determines the samples that some files give.

    Attributes:
        format: Shape of the rows.
        max_seq_length: Tokens; longer samples are cut at their end.
        on_bad_row: `error` or `skip`.
        max_samples: How many good rows to keep, from the start; None keeps all.
        split: Which side of a split, or None for all rows.
    """

    format: Format
    max_seq_length: int
    on_bad_row: Literal["error", "skip"] = "error"
    max_samples: int | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenised row: int32 (n,) and bool (n,); learned[i] says that token i is a target of the loss."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


class SampleStore:
    """Samples on disk, read one at a time.

    Args:
        folder: Verified with `read_manifest`.
        manifest: What `read_manifest` returned.
        files: The data files as the caller names them, in the order they were read.

    Attributes:
        lengths: int32 (len(self),), tokens of each sample.
        rows: ROW (len(self),), see `ROW`.
        num_tokens: In all samples.
        num_loss_tokens: Learned tokens among them.
        rows_read: Rows read, good and bad.
        skipped: Number of skipped rows, by kind of fault.
        max_seq_length: Tokens; no sample is longer.
        fingerprint: SHA-256 over all ids and labels, in order.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], files: Sequence[Path]) -> None:
        self.folder = folder
        self._files = [str(file) for file in files]
        arrays = {name: np.memmap(folder / name, dtype, "r") for name, dtype in FILES.items()}
        self._ids, self._learned, self._offsets, self.rows = arrays.values()
        self.lengths: NDArray[np.int32] = np.diff(self._offsets).astype(np.int32)
        self.num_tokens: int = manifest["num_tokens"]
        self.num_loss_tokens: int = manifest["num_loss_tokens"]
        self.rows_read: int = manifest["rows_read"]
        self.skipped: dict[str, int] = manifest["skipped"]
        self.max_seq_length: int = manifest["settings"]["max_seq_length"]
        hashes = [manifest["sha256"][name] for name in ("input_ids.bin", "learned.bin", "offsets.bin")]
        self.fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start, end = self._offsets[index : index + 2]
        return Sample(np.asarray(self._ids[start:end]), np.asarray(self._learned[start:end]))

    def block(self, start: int, end: int) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """Samples start to end as one array of ids, one of labels, and where in them each sample begins."""
        offsets = np.asarray(self._offsets[start : end + 1])
        tokens = slice(offsets[0], offsets[-1])
        return np.asarray(self._ids[tokens]), np.asarray(self._learned[tokens]), offsets[:-1] - offsets[0]

    def origin(self, index: int) -> Origin:
        """The file and line a sample comes from."""
        row = self.rows[index]
        return Origin(self._files[int(row["file"])], int(row["line"]))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete and undamaged folder, else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        seal = manifest.pop("seal")
        sound = seal == seal_of(manifest) and all(
            _sha256(folder / name) == digest for name, digest in manifest["sha256"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return manifest if sound else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
