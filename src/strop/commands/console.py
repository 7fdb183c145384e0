"""Where the commands print: tables and colour on a terminal, the same words without them elsewhere."""

from rich.console import Console
from rich.markup import escape

from strop.errors import StropError
from strop.recipe import Recipe

out = Console(highlight=False)


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
