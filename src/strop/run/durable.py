"""File writes that are whole or absent after a crash. The one place that knows about fsync.

They go through `os.open`, `os.write`, `os.fsync` and `os.rename` and not through file objects, so that a test
can stop the process at each of these calls (tests/faults/test_checkpoint_crash.py).
"""

import os
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of names that no reader looks at. What is left of them after a crash can be deleted."""


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a new file, or write over an old one, and wait until it is on the disk. Not atomic by itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: what was created in it, renamed or removed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that any reader, after any crash, finds the old content or all of the new."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    write_durably(temporary, data)
    os.rename(temporary, path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder whose entry in its parent is durable; does nothing where it is there already."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
