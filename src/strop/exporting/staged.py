"""An export's folder appears under its name complete and on disk, or not at all, and replaces nothing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.errors import RecipeError
from strop.run.durable import staged_folder


@contextmanager
def staged_export(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` to write to; it is renamed to `target` if the block succeeds.

    A killed process leaves the hidden folder behind. No loader is ever given its name, and the next export to the same
    place removes it.

    Raises:
        RecipeError: The target exists.
        StorageError: It cannot be written there, or the disk is full or fails.
    """
    refuse_existing(target)
    with staged_folder(target) as work:
        yield work
        refuse_existing(target)  # it would be replaced


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
