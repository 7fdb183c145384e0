"""Tokenised samples in a memory-mapped folder, built once for each combination of data and settings.

    <cache>/tokens/<key>/
        input_ids.bin   int32   all samples one after the other
        learned.bin     bool    the same shape: is this token a target of the loss?
        offsets.bin     int64   where each sample begins, and the end of the last
        rows.bin        ROW     where each sample comes from, how many of the row's turns it holds (0: all), flags,
                                hashes of its prompt and content
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
from strop.data.sources import Source
from strop.digest import sha256_of_file
from strop.errors import DataError

CODE_VERSION = 3  # raise it when the same rows and settings would give other tokens
ROW = np.dtype(
    [("file", "<u4"), ("line", "<u4"), ("turns", "<u2"), ("flags", "u1"), ("prompt", "<u8"), ("content", "<u8")]
)
FILES = {
    "input_ids.bin": np.dtype("<i4"),
    "learned.bin": np.dtype("?"),
    "offsets.bin": np.dtype("<i8"),
    "rows.bin": ROW,
}

TRUNCATED, STOP_CUT, SPECIAL_TEXT = 1, 2, 4
_SAMPLES_AT_A_TIME = 4096


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
        max_seq_length: Tokens of the longest sample.
        on_bad_row: `error` or `skip`.
        max_samples: How many good rows to keep, from the start; None keeps all.
        split: Which side of a split, or None for all rows.
        system: The system message of rows that have none.
        long_samples: What becomes of longer samples: `cut` at their end, documents `split`, or `drop`.
        long_overlap: Tokens that a part of a split document repeats of the part before it.
    """

    max_seq_length: int
    on_bad_row: Literal["error", "skip"] = "error"
    max_samples: int | None = None
    split: Split | None = None
    system: str | None = None
    long_samples: Literal["cut", "split", "drop"] = "cut"
    long_overlap: int = 0


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
        sources: What the samples were read from; files as the caller names them, in the order they were read.
        picks: Indices of samples, each of which counts as often as it is in there; None for each one once.

    Attributes:
        lengths: int32 (len(self),), tokens of each sample.
        rows: ROW (len(self),), see `ROW`.
        sources: See above.
        num_tokens: In all samples.
        num_loss_tokens: Learned tokens among them.
        rows_read: Rows read, good and bad.
        rows_used: Rows that became samples; a row may become several.
        skipped: Number of skipped rows, by kind of fault.
        unused: Number of rows with each key that is not used.
        found: What is out of the ordinary in the files, such as another encoding: `FILE: phrase`.
        tokens_cut: Tokens that samples lost at `max_seq_length`.
        max_seq_length: Tokens; no sample is longer.
        fingerprint: SHA-256 over all ids and labels, in order.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        sources: Sequence[Source],
        picks: NDArray[np.int64] | None = None,
    ) -> None:
        self.folder, self.sources, self._manifest = folder, tuple(sources), manifest
        self._files = [str(file) for source in sources for file in source.files]
        self._source_of_file = np.repeat(np.arange(len(sources)), [len(source.files) for source in sources])
        arrays = {name: np.memmap(folder / name, dtype, "r") for name, dtype in FILES.items()}
        self._ids, self._learned, offsets, rows = arrays.values()
        self.rows: NDArray[Any] = rows if picks is None else rows[picks]
        self._starts: NDArray[np.int64] = offsets[:-1] if picks is None else offsets[:-1][picks]
        lengths = np.diff(offsets).astype(np.int32)
        self.lengths: NDArray[np.int32] = lengths if picks is None else lengths[picks]
        self.num_tokens: int = manifest["num_tokens"] if picks is None else int(self.lengths.sum(dtype=np.int64))
        self.num_loss_tokens: int = manifest["num_loss_tokens"] if picks is None else self._count_learned()
        self.rows_read: int = manifest["rows_read"]
        self.rows_used: int = manifest["rows_used"]
        self.skipped: dict[str, int] = manifest["skipped"]
        self.unused: dict[str, int] = manifest["unused"]
        self.found: list[str] = manifest["found"]
        self.tokens_cut: int = manifest["tokens_cut"]
        self.max_seq_length: int = manifest["settings"]["max_seq_length"]
        hashes = [manifest["sha256"][name] for name in ("input_ids.bin", "learned.bin", "offsets.bin")]
        hashes += [] if picks is None else [hashlib.sha256(picks.tobytes()).hexdigest()]
        self.fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()

    def repeated(self, picks: NDArray[np.int64]) -> "SampleStore":
        """The same samples, each as often as its index is in `picks`, in that order."""
        return SampleStore(self.folder, self._manifest, self.sources, picks)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start = self._starts[index]
        end = start + self.lengths[index]
        return Sample(np.asarray(self._ids[start:end]), np.asarray(self._learned[start:end]))

    def block(self, start: int, end: int) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
        """Samples start to end as one array of ids, one of labels, and where in them each sample begins."""
        lengths = self.lengths[start:end].astype(np.int64)
        begins = np.cumsum(lengths) - lengths
        if (self._starts[start:end] - self._starts[start] == begins).all():  # as they are on disk
            tokens = slice(self._starts[start], self._starts[start] + lengths.sum())
            return np.asarray(self._ids[tokens]), np.asarray(self._learned[tokens]), begins
        samples = [self[i] for i in range(start, end)]
        ids, learned = [sample.input_ids for sample in samples], [sample.learned for sample in samples]
        return np.concatenate(ids), np.concatenate(learned), begins

    def origin(self, index: int) -> Origin:
        """The file and line a sample comes from."""
        row = self.rows[index]
        return Origin(self._files[int(row["file"])], int(row["line"]))

    def place(self, index: int) -> tuple[Origin, int]:
        """Where a sample's row is, and how many of its turns the sample holds; 0 for all."""
        return self.origin(index), int(self.rows["turns"][index])

    def source_indices(self) -> NDArray[np.int64]:
        """For each sample, which of `sources` it comes from."""
        indices: NDArray[np.int64] = self._source_of_file[self.rows["file"]]
        return indices

    def _count_learned(self) -> int:
        """Learned tokens, counted in blocks, so that memory does not grow with the data."""
        blocks = (
            self.block(i, min(i + _SAMPLES_AT_A_TIME, len(self))) for i in range(0, len(self), _SAMPLES_AT_A_TIME)
        )
        return sum(int(np.count_nonzero(learned)) for _, learned, _ in blocks)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete and undamaged folder, else None."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        seal = manifest.pop("seal")
        sound = seal == seal_of(manifest) and all(
            sha256_of_file(folder / name) == digest for name, digest in manifest["sha256"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return manifest if sound else None


def seal_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
