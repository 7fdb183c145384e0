"""`strop init`: a first recipe for someone's rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from strop.commands.console import out
from strop.data.sources import open_sources
from strop.errors import RecipeError
from strop.recipe import DataSection
from strop.recipe.shipped import starter_recipe

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base model if the user names none: small enough for any machine."""


def init(data: str, path: Path, *, model: str = DEFAULT_MODEL) -> None:
    """Write a starter recipe for someone's rows.

    Args:
        data: A file, a glob or a hub id.
        path: The recipe's file.
        model: The base model: a folder, a .gguf file or a hub id.

    Raises:
        RecipeError: The file exists already, or cannot be written.
        DataError: The rows cannot be found, or their shape is not known.
    """
    if path.exists():
        raise RecipeError(f"{path} exists already; name another file with --output")
    open_sources(DataSection(train_file=(data,)), [data])
    try:
        path.write_text(starter_recipe(data, model), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}; name another file with --output") from error


def command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Your rows: a file, a glob or a hub id.")],
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a hub id.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
) -> None:
    """Write a starter recipe for your data, every line explained."""
    path = output or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(data).stem).strip('-._') or 'recipe'}.yaml")
    init(data, path, model=model or DEFAULT_MODEL)
    out.print(f"wrote {escape(str(path))}. Next: strop check {escape(str(path))}")
