"""What commands share: where they print, and the arguments that several of them take."""

import os
from contextlib import AbstractContextManager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from strop.errors import StropError
from strop.recipe import Recipe
from strop.run.reporter import Reporter
from strop.run.waiting import Seen, waiting_by_lines, waiting_on
from strop.terminal import Terminal, message


class _Output(Terminal):
    """Standard output, whose reader may go, as with `| head`: nothing more is said, and the command does its work."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.file.fileno())
            os.close(null)


out = _Output()
_err = Terminal(stderr=True)


def notes(recipe: Recipe) -> None:
    """What reading the recipe took for granted."""
    for note in recipe.notes:
        out.print(f"[dim]recipe: {escape(note)}[/dim]")


def note(line: str) -> None:
    """Something that takes a while, or was chosen."""
    out.print(message(line), markup=False, soft_wrap=True)


def aside(line: str) -> None:
    """Something to know, beside the answers on standard output."""
    _err.print(message(line), style="dim", markup=False, soft_wrap=True)


class Printing(Reporter):
    """Tells a person at a terminal, or in a log, what a command does."""

    def note(self, line: str) -> None:
        """See `Reporter`."""
        note(line)

    def waiting(self, what: str) -> AbstractContextManager[Seen]:
        """See `Reporter`. Never on an output that is piped or kept: there may be nothing but answers in it."""
        for console in (out, _err):
            if console.is_terminal and not console.is_dumb_terminal:
                return waiting_on(console, what)
        return waiting_by_lines(what, lambda line: _err.print(line, markup=False, soft_wrap=True))


def error(problem: StropError) -> None:
    """The one message that an error gets."""
    _err.print(f"[red]error:[/red] {escape(message(str(problem)))}", soft_wrap=True)


class Place(StrEnum):
    """Where a model is trained or served."""

    here = "here"
    modal = "modal"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, such as train.max_steps=60."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", readable=False, help="A run folder, such as runs/demo.")]
