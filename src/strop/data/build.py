"""Rows -> the folder of a SampleStore, in one pass and constant memory; nothing is visible until it is complete."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from strop.data.examples import Conversation, Example, Fault, Row, Text, split_answer
from strop.data.long_samples import DROPPED, fit
from strop.data.sources import Source, read_examples
from strop.data.store import (
    CODE_VERSION,
    FILES,
    ROW,
    SPECIAL_TEXT,
    BadRowsError,
    Split,
    StoreSettings,
    read_manifest,
    seal_of,
)
from strop.data.template import Encoded, Template
from strop.data.template_process import TemplateOverrun
from strop.errors import DataError
from strop.readable import counted

_ROWS_AT_A_TIME = 1024
_FAULTS_SHOWN, _OF_A_KIND = 20, 5
_MOST_OVERRUNS = 5
_MOST_TURNS = 2**16 - 1
_ABANDONED_AFTER = 24 * 3600  # seconds


def build(
    folder: Path,
    sources: Sequence[Source],
    template: Template,
    settings: StoreSettings,
    seen: Callable[[str], None] = lambda text: None,
) -> None:
    """Tokenise the sources into `folder`, replacing it if it is damaged; `seen` is told how many rows were read.

    Raises:
        BadRowsError, DataError: See `strop.data.dataset.open_or_build`.
        OSError: The cache cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        builder = _Builder(work, sources, template, settings)
        builder.run(seen)
        if builder.faults and settings.on_bad_row == "error":
            raise _bad_rows(builder, folder)
        if not builder.num_samples:
            raise DataError(_no_rows_left(builder, settings))
        builder.finish()
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Builder:
    """The state of one pass over the rows."""

    def __init__(self, work: Path, sources: Sequence[Source], template: Template, settings: StoreSettings) -> None:
        self.work = work
        self.template = template
        self.settings = settings
        self.sources = sources
        self.files = [file for source in sources for file in source.files]
        self.faults: list[Fault] = []
        self._overruns = 0
        self.dropped: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.found: list[str] = []
        self.rows_used = 0
        self.tokens_cut = 0
        self.num_samples = 0
        self.num_tokens = 0
        self.num_loss_tokens = 0
        places = [(number, str(file)) for number, source in enumerate(sources) for file in source.files]
        self._file_number = {place: number for number, place in enumerate(places)}
        self._order = {file: number for number, (_, file) in enumerate(places)}
        self._stop_ids = np.array(sorted(template.stop_ids), dtype=np.int32)
        self._writers = {name: _HashedFile(work / name) for name in FILES}
        self._writers["offsets.bin"].write(np.zeros(1, FILES["offsets.bin"]))

    @property
    def rows_read(self) -> int:
        return self.rows_used + len(self.faults) + self.dropped.total()

    def run(self, seen: Callable[[str], None]) -> None:
        rows = self._rows()
        limit = self.settings.max_samples
        while limit is None or self.rows_used < limit:
            left = _ROWS_AT_A_TIME if limit is None else min(_ROWS_AT_A_TIME, limit - self.rows_used)
            block = list(islice(rows, left))
            if not block:
                break
            self._add(block)
            seen(counted(self.rows_read, "row"))
        self.faults.sort(key=lambda fault: (self._order[fault.origin.file], fault.origin.line))

    def _rows(self) -> Iterator[Row]:
        split = self.settings.split
        for row in read_examples(self.sources, self.settings.system, self.found.append):
            if isinstance(row, Fault):
                # A row that does not parse has no hash, so it is counted once, with the training rows.
                if split is None or split.part == "train" or self.settings.on_bad_row == "error":
                    self.faults.append(row)
            elif split is None or falls_into(split, row.example):
                yield row

    def _add(self, block: list[Row]) -> None:
        kept: list[tuple[Row, Encoded, int]] = []
        for row, samples in self._encode(block):
            fitted = fit(samples, isinstance(row.example, Text), self.template.bos_id, self.settings, self._stop_ids)
            if isinstance(fitted, str):
                self.faults.append(Fault(row.origin, fitted))
            elif not fitted.samples:
                self.dropped[DROPPED] += 1
            else:
                self.rows_used += 1
                self.tokens_cut += fitted.tokens_cut
                self.unused.update(row.unused)
                kept += [(row, *sample) for sample in fitted.samples]
        if kept:
            self._write(kept)

    def _encode(self, block: list[Row]) -> list[tuple[Row, list[Encoded]]]:
        """Encode the block at once; if a row cannot be rendered, encode one by one to find out which."""
        try:
            return list(zip(block, self.template.encode([row.example for row in block]), strict=True))
        except DataError:
            encoded = []
            for row in block:
                try:
                    encoded += [(row, samples) for samples in self.template.encode([row.example])]
                except DataError as error:
                    self.faults.append(Fault(row.origin, str(error)))
                    self._count(error)
            return encoded

    def _count(self, error: DataError) -> None:
        """End a pass in which row after row costs seconds: a million of them would take weeks."""
        self._overruns += isinstance(error, TemplateOverrun)
        if self._overruns >= _MOST_OVERRUNS:
            shown = "\n".join(f"  {fault}" for fault in self.faults[-_MOST_OVERRUNS:])
            raise DataError(f"{self._overruns} rows ran over the limits of a chat template; no more are read:\n{shown}")

    def _write(self, kept: list[tuple[Row, Encoded, int]]) -> None:
        rows = np.empty(len(kept), ROW)
        pattern = self.template.special_text
        for i, (row, encoded, flags) in enumerate(kept):
            prompt, answer = split_answer(row.example, encoded.num_turns)
            text = "\x1f".join((*prompt, answer))
            special = SPECIAL_TEXT if pattern and pattern.search(text) else 0
            hashes = _hash64("\x1f".join(prompt)) if prompt else 0, _hash64(text)
            file, turns = self._file_number[row.source, row.origin.file], _turns(row.example, encoded)
            rows[i] = (file, row.origin.line, turns, flags | special, *hashes)
        lengths = np.array([len(encoded.input_ids) for _, encoded, _ in kept], np.int64)
        learned = np.concatenate([encoded.learned for _, encoded, _ in kept])
        self._writers["input_ids.bin"].write(np.concatenate([encoded.input_ids for _, encoded, _ in kept]))
        self._writers["learned.bin"].write(learned)
        self._writers["offsets.bin"].write(self.num_tokens + np.cumsum(lengths))
        self._writers["rows.bin"].write(rows)
        self.num_samples += len(kept)
        self.num_tokens += int(lengths.sum())
        self.num_loss_tokens += int(learned.sum())

    def finish(self) -> None:
        """Close the files, then write the manifest."""
        (self.work / "faults.txt").write_text("".join(f"{fault}\n" for fault in self.faults), "utf-8")
        manifest: dict[str, Any] = {
            "code_version": CODE_VERSION,
            "settings": asdict(self.settings),
            "files": [str(file) for file in self.files],
            "template": {"name": self.template.name, "fingerprint": self.template.fingerprint},
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            "num_loss_tokens": self.num_loss_tokens,
            "rows_read": self.rows_read,
            "rows_used": self.rows_used,
            "skipped": dict(Counter(fault.kind for fault in self.faults) + self.dropped),
            "unused": dict(self.unused.most_common()),
            "found": list(dict.fromkeys(self.found)),
            "tokens_cut": self.tokens_cut,
            "sha256": {name: writer.close() for name, writer in self._writers.items()},
        }
        manifest["seal"] = seal_of(manifest)
        with (self.work / "manifest.json").open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())


class _HashedFile:
    """A file that hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, array: np.ndarray[Any, Any]) -> None:
        data = array.tobytes()
        self._file.write(data)
        self._digest.update(data)

    def close(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def _turns(example: Example, encoded: Encoded) -> int:
    """How many of a row's turns a sample holds; 0 if all, so that it does not matter where they are counted."""
    is_part = isinstance(example, Conversation) and encoded.num_turns < len(example.messages)
    return min(encoded.num_turns, _MOST_TURNS) if is_part else 0


def falls_into(split: Split, example: Example) -> bool:
    """Whether a row is on a side of a split; its content decides, so duplicates stay together."""
    prompt, answer = split_answer(example)
    place = _hash64("\x1f".join((str(split.seed), *prompt, answer))) / 2**64
    return (place < split.percentage / 100) == (split.part == "validation")


def _publish(work: Path, folder: Path) -> None:
    """Rename into place, unless another process has already put an intact folder there."""
    if folder.exists():
        if read_manifest(folder) is not None:
            return
        shutil.rmtree(folder)
    work.rename(folder)


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(".building-*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def _bad_rows(builder: _Builder, folder: Path) -> BadRowsError:
    faults = builder.faults
    listing = folder.parent.parent / "faults" / f"{folder.name[:16]}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{fault}\n" for fault in faults), "utf-8")
    chosen = _some_of_each_kind(faults)
    shown = "\n".join(f"  {fault}" for fault in chosen)
    more = len(faults) - len(chosen)
    rest = f"\n  and {more:,} more; the full list is in {listing}" if more > 0 else ""
    ways = (
        "Fix them, or skip them with data.on_bad_row=skip"
        if builder.rows_used
        else "No row is left without them: fix them, or what the recipe says of them"
    )
    return BadRowsError(
        f"{len(faults):,} of {counted(builder.rows_read, 'row')} cannot be used:\n{shown}{rest}\n{ways}", faults
    )


def _some_of_each_kind(faults: Sequence[Fault]) -> list[Fault]:
    """Some faults, in order: of one kind a few say it all."""
    seen: Counter[str] = Counter()
    chosen = []
    for fault in faults:
        seen[fault.kind] += 1
        if seen[fault.kind] <= _OF_A_KIND:
            chosen.append(fault)
    return chosen[:_FAULTS_SHOWN]


def _no_rows_left(builder: _Builder, settings: StoreSettings) -> str:
    names = ", ".join(str(file) for file in builder.files)
    if builder.faults:
        kinds = Counter(fault.kind for fault in builder.faults)
        reasons = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common())
        return f"no row of {names} can be used: {reasons}; the first: {builder.faults[0]}"
    if builder.dropped:
        return (
            f"no row of {names} is left: data.long_samples=drop, and all {builder.dropped.total():,} are {DROPPED}="
            f"{settings.max_seq_length}"
        )
    if settings.split is None:
        return f"{names}: there are no rows"
    return (
        f"{names}: with so few rows, none were assigned to {settings.split.part}; raise "
        f"data.validation_split_percentage={settings.split.percentage:g}, or set data.validation_file"
    )
