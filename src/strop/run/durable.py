"""Files and folders that are whole or absent after a crash. The one place that knows about fsync.

Everything goes through `os.open`, `os.write`, `os.fsync` and `os.rename`, so that a test can stop the process at each
of these calls (tests/faults/test_checkpoint_crash.py).
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from strop.errors import REMEDIES, RecipeError, StorageError, of_file

TEMPORARY = ".tmp-"
"""Prefix of names that no reader looks at. What is left of them after a crash can be deleted: see `sweep`."""

_NUMBER = re.compile(r"\((?:os error )?(\d{1,3})\)", re.ASCII)
_WRITER = re.compile(r"\.(\d{1,9})", re.ASCII)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a new file, or write over an old one, and wait until it is on the disk. Not atomic by itself.

    Raises:
        OSError: As the system says.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file is on the disk, or a folder's entries: what was created in it, renamed or removed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder whose entry in its parent is durable; does nothing where it is there already."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that any reader, after any crash, finds the old content or all of the new.

    Raises:
        StorageError: It cannot be written. The old content is as it was.
    """
    with staged_file(path) as work:
        write_durably(work, data)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside `path` to write a file to; it replaces `path` if the block succeeds.

    Raises:
        StorageError: It cannot be written. The old content is as it was.
    """
    work = _temporary(path)
    with writing(path):
        sweep(path.parent, path.name)
        try:
            yield work
            sync(work)
            os.rename(work, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(work)
            raise
        sync(path.parent)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; it takes that name, whole and on the disk, if the block succeeds.

    A folder that has the name already is replaced: it is moved away just before, and removed after.

    Raises:
        StorageError: The disk is full or fails, or the folder cannot be written to. The target is as it was.
    """
    work = _temporary(target)
    with writing(target):
        try:
            make_folder(target.parent)
            sweep(target.parent, target.name)
            _delete(work)
            os.mkdir(work)
            yield work
            _sync_all(work)
            if os.path.lexists(target):
                remove(target)
            os.rename(work, target)
            sync(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def remove(path: Path) -> None:
    """Take a file or folder away; its name goes first, so that a kill never leaves a part under a valid name.

    Raises:
        OSError: As the system says.
    """
    doomed = _temporary(path.with_name(f"removed-{path.name}"))
    _delete(doomed)
    os.rename(path, doomed)
    sync(path.parent)
    _delete(doomed)


def sweep(folder: Path, name: str = "*") -> None:
    """Delete what killed processes have left of their work in a folder, on `name` or on anything.

    What a process that lives is working on stays. What cannot be deleted stays too: nothing ever reads it.
    """
    for left in {*folder.glob(f"{TEMPORARY}{name}"), *folder.glob(f"{TEMPORARY}{name}.*")}:
        writer = _WRITER.fullmatch(left.suffix)
        if writer is None or not is_alive(int(writer[1])):
            with suppress(OSError):
                _delete(left)


@contextmanager
def writing(path: Path, key: str = "") -> Iterator[None]:
    """Within its context, what the system says against a write to `path` becomes an error that names it.

    Args:
        path: The file or folder.
        key: The recipe's key that names it, for the message.

    Raises:
        RecipeError: The name itself cannot be.
        StorageError: The machine does not take the write.
    """
    name = f"{key}={path}" if key else path
    try:
        yield
    except Exception as error:
        said = error if isinstance(error, OSError) else _of_the_system(error)
        if said is None:
            raise
        if isinstance(known := of_file(said, name), RecipeError):
            raise known from error
        remedy = f"; {REMEDIES[said.errno]}" if said.errno in REMEDIES else ""
        raise StorageError(f"{name} cannot be written: {reason(said, path)}{remedy}") from error


def _of_the_system(error: Exception) -> OSError | None:
    """What the system says, where safetensors, tokenizers or torch raise an error of their own with its number."""
    text = str(error)
    numbers = [int(found) for found in _NUMBER.findall(text)]
    return next((OSError(each, os.strerror(each)) for each in numbers if os.strerror(each) in text), None)


def reason(error: OSError, path: Path) -> str:
    """What the system says, and on a full disk how much of it is free."""
    said = error.strerror or type(error).__name__
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return said
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return f"{said} ({shutil.disk_usage(existing).free:,} bytes are free)"


def is_alive(pid: int | None) -> bool:
    """Whether there is such a process on this machine."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's, and alive
        return True
    return True


def _temporary(path: Path) -> Path:
    """Where this process works on a file or folder, before it takes its name."""
    return path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")


def _sync_all(folder: Path) -> None:
    """Wait until every file is on the disk, and let others read them: safetensors creates them private."""
    for path in folder.iterdir():
        path.chmod(0o644)
        sync(path)
    folder.chmod(0o755)
    sync(folder)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
