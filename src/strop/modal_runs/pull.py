"""Brings a run folder back from Modal: the whole folder or nothing, with every byte checked.

It is downloaded next to its final place, verified, and swapped in by renaming, so no reader ever finds half a run. If a
pull is cut off between the two renames, the next one completes it.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from strop.digest import sha256_of_file
from strop.errors import CloudError
from strop.modal_runs.follow import cloud_errors
from strop.modal_runs.remote_run import RECORD_FILE, files_list, read_record, run_folder
from strop.model.pretrained.locate import shared_name
from strop.readable import counted
from strop.recipe import load_recipe
from strop.run.durable import replace_file, sync
from strop.run.folder import RunFolder

if TYPE_CHECKING:
    import modal

_NOT_PULLED = "run.lock"  # names a process on the other machine


def pull(folder: Path, note: Callable[[str], None], must_exist: bool = True) -> bool:
    """Replace a local run folder by what Modal has of the run now.

    Files that only the local folder has, such as evaluation.json, are kept. A checkpoint that does not verify, because
    it was being written, is skipped with a note.

    Args:
        folder: A run folder with modal.json, as a launch leaves it.
        note: Called with a line about what was done.
        must_exist: Whether it is an error if the run has no folder yet.

    Returns:
        Whether there was anything to fetch.

    Raises:
        RecipeError: The folder is not a run on Modal.
        CloudError: Modal cannot be reached, has no files, or a file arrived damaged.
    """
    import modal

    if folder.name in ("", ".."):  # `strop pull .`
        folder = folder.resolve()
        read_record(folder)  # refuses a folder that has no name, such as /
    aside = folder.with_name(f".replaced-{folder.name}")
    if aside.is_dir() and not folder.exists():
        os.rename(aside, folder)  # an earlier pull was cut off here
    run = read_record(folder)
    staging = folder.with_name(f".pulling-{folder.name}")
    for leftover in (staging, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    with cloud_errors():
        volume = modal.Volume.from_name(run.volume)
        files = _list(volume, run_folder(run.run_id))
        if "run.json" not in files:
            if must_exist:
                raise CloudError(f"Modal has no files of {run.run_id} yet; check its progress: strop logs {folder}")
            return False
        listed = _read_listed(volume, run.run_id)
        for name, path in files.items():
            _download(volume, path, staging / name)
    _verify(staging, listed, note)
    _bring_local(staging, folder)
    os.rename(folder, aside)
    os.rename(staging, folder)
    sync(folder.parent)
    shutil.rmtree(aside)
    note(f"pulled {folder}: {counted(len(files), 'file')}, all hashes verified")
    return True


def _list(volume: "modal.Volume", root: str) -> dict[str, str]:
    """Paths of a run's files on the Volume, by their names within the run."""
    from modal.exception import NotFoundError
    from modal.types import FileEntryType

    try:
        entries = volume.listdir(f"/{root}", recursive=True)
    except (NotFoundError, FileNotFoundError):
        return {}
    paths = [PurePosixPath("/" + entry.path.strip("/")) for entry in entries if entry.type == FileEntryType.FILE]
    names = {path.relative_to(f"/{root}").as_posix(): str(path) for path in paths}
    return {name: path for name, path in names.items() if name != _NOT_PULLED and ".tmp" not in name}


def _read_listed(volume: "modal.Volume", run_id: str) -> dict[str, Any]:
    """The list that the last attempt wrote when it ended; empty during the first attempt."""
    try:
        listed = json.loads(b"".join(volume.read_file(files_list(run_id))))
    except (FileNotFoundError, ValueError):
        return {}
    return listed if isinstance(listed, dict) else {}


def _download(volume: "modal.Volume", path: str, target: Path) -> None:
    if ".." in target.parts:
        raise CloudError(f"the Volume has a file whose path leads outside the run: {path}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for block in volume.read_file(path):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _verify(staging: Path, listed: dict[str, Any], note: Callable[[str], None]) -> None:
    """Check every hash: the adapter's against the attempt's list, checkpoints' against their manifests.

    Raises:
        CloudError: The adapter did not arrive as it was written.
    """
    for name, entry in listed.items():
        path = staging / name
        if name.startswith("adapter/") and (not path.exists() or sha256_of_file(path) != entry["sha256"]):
            raise CloudError(f"{name} did not arrive as it was written; nothing was replaced. Pull again")
    if (staging / "adapter").is_dir() and not any(name.startswith("adapter/") for name in listed):
        shutil.rmtree(staging / "adapter")
        note("the adapter is still being written and was skipped; pull again when the run has ended")
    checkpoints = sorted(staging.glob("checkpoints/step-*"))
    if checkpoints:
        _drop_damaged(checkpoints, note)


def _drop_damaged(checkpoints: list[Path], note: Callable[[str], None]) -> None:
    from strop.run.checkpoint import is_intact  # imports torch

    for checkpoint in checkpoints:
        if not is_intact(checkpoint):
            shutil.rmtree(checkpoint)
            note(f"skipped checkpoint {checkpoint.name}, which does not verify; the run may still be writing it")


def _bring_local(staging: Path, folder: Path) -> None:
    """Make the folder a local one: keep what only the old folder has, the local recipe, and the base's name here."""
    for path in folder.iterdir():
        if path.is_file() and (path.name in (RECORD_FILE, "recipe.yaml") or not (staging / path.name).exists()):
            shutil.copyfile(path, staging / path.name)
    if (recipe := staging / "recipe.yaml").exists() and (staging / "run.json").exists():
        digest = sha256_of_file(recipe)
        RunFolder(staging).update(lambda manifest: replace(manifest, recipe=digest))
    config = staging / "adapter" / "adapter_config.json"
    if not config.exists():
        return
    model, written = load_recipe(str(staging / "recipe.yaml")).model, json.loads(config.read_bytes())
    base, revision = shared_name(model.model_name_or_path, model.revision)
    if written["base_model_name_or_path"] != base:  # its place on the Volume
        contents = written | {"base_model_name_or_path": base, "revision": revision}
        replace_file(config, json.dumps(contents, indent=2, sort_keys=True).encode() + b"\n")
        mark = {config.name: sha256_of_file(config)}
        RunFolder(staging).update(lambda manifest: replace(manifest, adapter={**manifest.adapter, **mark}))
