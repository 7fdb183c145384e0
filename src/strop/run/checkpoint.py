"""Checkpoints: written whole or not at all, found by step, and hashed before a byte of them is believed.

    checkpoints/step-00000010/
      state.safetensors   the tensors
      state.json          everything else that the loop remembers
      manifest.json       format version, step, and SHA-256 and size of the other two; written last

A save fills a temporary folder beside them, fsyncs each file, the manifest last, and renames the folder into
place. safetensors has no checksum of its own: of 1000 files with one flipped bit, 998 loaded as wrong
weights. Nothing here is ever unpickled.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from strop.errors import CheckpointError, StorageError
from strop.run.durable import make_folder, reason, remove, staged_folder, sweep, write_durably

FORMAT_VERSION = 1
TENSORS_FILE, STATE_FILE, MANIFEST_FILE = "state.safetensors", "state.json", "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,})", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified.

    Attributes:
        step: Updates made when it was saved.
        tensors: On the CPU, with the names, shapes and dtypes they were saved with.
        state: As it was given to `save_checkpoint`, after a round trip through JSON.
        path: Its folder.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class Rejected:
    """Something that looks like a checkpoint and cannot be used, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Damaged(Exception):
    """Why a folder is not a checkpoint that can be trusted."""


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Path:
    """Write `folder`/step-NNNNNNNN so that a crash at any instant leaves it whole or absent.

    A sound checkpoint of the same step is kept: replacing it would open an instant with neither. Folders of
    later steps are removed afterwards: resuming starts from the newest that verifies, so they are of a future
    that was given up, and must not be found again once the run has gone another way.

    Args:
        folder: The folder that holds the checkpoints of a run; created if needed. One process writes to it.
        step: Updates made so far.
        tensors: Any device, dtype and shape.
        state: What JSON can hold: string keys, numbers, strings, None, lists, mappings.

    Raises:
        StorageError: The disk is full, or does not take the write. Earlier checkpoints are as they were.
    """
    final = checkpoint_path(folder, step)
    if is_intact(final):
        return final
    contents = {
        TENSORS_FILE: safetensors.torch.save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        ),
        STATE_FILE: json.dumps(dict(state), indent=1).encode(),
    }
    contents[MANIFEST_FILE] = _manifest(step, contents)
    try:
        make_folder(folder)
        sweep(folder)
        with staged_folder(final) as staging:
            for name, data in contents.items():
                write_durably(staging / name, data)
        for later, path in _step_folders(folder):
            if later > step:
                remove(path)
    except (OSError, StorageError) as error:
        needed = sum(map(len, contents.values()))
        said = error if isinstance(error, StorageError) else f"{final} cannot be written: {reason(error, folder)}"
        raise StorageError(
            f"{said}. The checkpoint needs {needed:,} bytes. Earlier ones are intact; the same command resumes from "
            "the newest."
        ) from error
    return final


def load_newest(
    folder: Path, refuse: Callable[[Mapping[str, Any]], str | None] = lambda state: None
) -> tuple[Checkpoint | None, list[Rejected]]:
    """The checkpoint of the highest step that verifies, and what was passed over on the way to it.

    Times of files play no part. What is hashed is what is loaded: each file is read once, into memory.

    Args:
        folder: The folder that holds the checkpoints of a run.
        refuse: Says from a checkpoint's state why it cannot be used although it verifies; None if it can.

    Returns:
        The checkpoint, or None where nothing was ever saved; and the rejected ones, newest first.

    Raises:
        CheckpointError: There are checkpoints and none of them verifies.
    """
    rejected = [Rejected(path, "its name is not step-NNNNNNNN") for path in _misnamed(folder)]
    for _, path in reversed(_step_folders(folder)):
        try:
            checkpoint = _load(path)
        except _Damaged as damage:
            rejected.append(Rejected(path, str(damage)))
            continue
        if (fault := refuse(checkpoint.state)) is None:
            return checkpoint, rejected
        rejected.append(Rejected(path, fault))
    if rejected:
        reasons = "\n".join(f"  {each}" for each in rejected)
        raise CheckpointError(
            f"no checkpoint in {folder} can be used:\n{reasons}\n"
            "To train from the start, set train.output_dir to another folder (this one is left as it is), "
            "or restore one of these from a copy."
        )
    return None, []


def is_intact(path: Path) -> bool:
    """Whether this folder is a checkpoint that verifies."""
    try:
        _read_verified(path)
    except _Damaged:
        return False
    return True


def prune(folder: Path, keep: int, protect: Collection[int] = ()) -> None:
    """Remove the oldest checkpoints until `keep` are left; call it once the newest is in place.

    Args:
        folder: The folder that holds the checkpoints of a run.
        keep: How many of the newest to leave, at least 1.
        protect: Steps that are never removed, even where they are older than the `keep` newest.

    Raises:
        StorageError: One cannot be removed. Left unsaid, this would fill the disk later.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least the newest checkpoint must stay")
    for step, path in _step_folders(folder)[:-keep]:
        if step not in protect:
            try:
                remove(path)
            except OSError as error:
                raise StorageError(f"the old checkpoint {path} cannot be removed: {error.strerror}") from error


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is or will be; eight digits, and more once they are needed."""
    return folder / f"step-{step:08d}"


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Everything named as a checkpoint, oldest step first. A name with a superfluous zero is not one."""
    if not folder.is_dir():
        return []
    matches = [(_STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    steps = [(int(match[1]), path) for match, path in matches if match]
    return sorted((step, path) for step, path in steps if path == checkpoint_path(folder, step))


def _misnamed(folder: Path) -> list[Path]:
    named = {path for _, path in _step_folders(folder)}
    return sorted(path for path in folder.glob("step-*") if path not in named)


def _manifest(step: int, contents: Mapping[str, bytes]) -> bytes:
    """The manifest is a function of what it describes, so a reader can compare all of its bytes."""
    files = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in contents.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "step": step, "files": files}, indent=1).encode()


def _load(path: Path) -> Checkpoint:
    contents = _read_verified(path)
    try:
        tensors = safetensors.torch.load(contents[TENSORS_FILE])
        state = json.loads(contents[STATE_FILE])
    except (safetensors.SafetensorError, ValueError) as error:
        raise _Damaged(f"its hashes are right and it cannot be read: {error}") from None
    return Checkpoint(int(path.name.removeprefix("step-")), tensors, state, path)


def _read_verified(path: Path) -> dict[str, bytes]:
    """The two files of a checkpoint, verified. No file of another name is ever opened."""
    manifest = _read(path / MANIFEST_FILE)
    files = _described_files(manifest)
    contents: dict[str, bytes] = {}
    for name in (TENSORS_FILE, STATE_FILE):
        data = contents[name] = _read(path / name)
        if len(data) != files[name].get("size"):
            raise _Damaged(f"{name} has {len(data)} bytes, manifest.json says {files[name].get('size')}")
        if hashlib.sha256(data).hexdigest() != files[name].get("sha256"):
            raise _Damaged(f"{name} has another SHA-256 than manifest.json says")
    # This also binds the step to the folder's name, and leaves no byte of the manifest unchecked.
    if manifest != _manifest(int(path.name.removeprefix("step-")), contents):
        raise _Damaged("manifest.json is not what was written for this step")
    return contents


def _described_files(manifest: bytes) -> dict[str, dict[str, Any]]:
    try:
        described = json.loads(manifest)
        version, files = described["format_version"], described["files"]
        entries = {name: dict(files[name]) for name in files}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Damaged("manifest.json is damaged") from None
    if version != FORMAT_VERSION:
        raise _Damaged(f"it has format {version}; this strop reads format {FORMAT_VERSION}")
    if set(entries) != {TENSORS_FILE, STATE_FILE}:
        raise _Damaged(f"manifest.json names other files: {', '.join(map(repr, sorted(entries)))}")
    return entries


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from None
