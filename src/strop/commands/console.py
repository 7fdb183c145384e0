"""What commands share: where they print, and the arguments that several of them take."""

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from strop.errors import StropError
from strop.recipe import Recipe


class _Output(Console):
    """Standard output, whose reader may go, as with `| head`: nothing more is said, and the command does its work."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())
            os.close(null)


out = _Output(highlight=False)


def notes(recipe: Recipe) -> None:
    """What reading the recipe took for granted."""
    for note in recipe.notes:
        out.print(f"[dim]recipe: {escape(note)}[/dim]")


def note(line: str) -> None:
    """Something that takes a while, or was chosen."""
    out.print(line, markup=False, soft_wrap=True)


def error(problem: StropError) -> None:
    """The one message that an error gets."""
    Console(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(str(problem))}", soft_wrap=True)


class Place(StrEnum):
    """Where a model is trained or served."""

    here = "here"
    modal = "modal"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, such as train.max_steps=60."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
