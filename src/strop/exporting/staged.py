"""An export's folder appears under its name whole and on the disk, or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strop.errors import RecipeError, StropError
from strop.run.durable import TEMPORARY, sync_folder


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write in, which becomes `target` when the block ends well.

    A process that is killed leaves the hidden folder, whose name no loader is given; the next export to the same
    place removes it.

    Raises:
        RecipeError: The target exists, or its parent cannot be written.
        StropError: The disk is full or fails.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent))
    except OSError as error:
        raise RecipeError(f"{target} cannot be written: {error.strerror}; name another folder with --output") from error
    try:
        yield work
        _make_durable(work)
        refuse_existing(target)  # rename would replace an empty folder
        os.rename(work, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise
        raise StropError(f"{target} cannot be written: {error.strerror}; nothing was left there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Nothing is ever written over.

    Raises:
        RecipeError: Something is there.
    """
    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target} exists already; name another folder with --output, or remove it")


def _make_durable(folder: Path) -> None:
    """Wait until every file is on the disk; readable by others, as mkdtemp and safetensors do not make them."""
    for path in folder.iterdir():
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    folder.chmod(0o755)
    sync_folder(folder)
