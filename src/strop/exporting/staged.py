"""An export's folder appears under its name complete and on disk, or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.errors import RecipeError, StropError
from strop.run.durable import TEMPORARY, sync_folder


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` to write to; it is renamed to `target` if the block succeeds.

    A killed process leaves the hidden folder behind. No loader is ever given its name, and the next export to the same
    place removes it.

    Raises:
        RecipeError: The target exists, or its parent cannot be written to.
        StropError: The disk is full or fails.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent))
    except OSError as error:
        raise RecipeError(f"cannot write {target}: {error.strerror}; choose another folder with --output") from error
    try:
        yield work
        _make_durable(work)
        refuse_existing(target)  # rename would replace an empty folder
        os.rename(work, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise
        raise StropError(f"cannot write {target}: {error.strerror}; nothing was left there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        RecipeError: The target exists.
    """
    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target} already exists; choose another folder with --output, or remove it")


def write_json(path: Path, value: Any) -> None:
    """Write JSON indented, for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_durable(folder: Path) -> None:
    """Wait until every file is on disk, and let others read them: mkdtemp and safetensors create them private."""
    for path in folder.iterdir():
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    folder.chmod(0o755)
    sync_folder(folder)
