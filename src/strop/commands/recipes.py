"""`strop recipes`: the shipped recipes."""

from typing import Annotated

import typer

from strop.recipe import list_recipes, recipe_text


def command(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List the shipped recipes, or print one to start your own from."""
    typer.echo("\n".join(list_recipes()) if name is None else recipe_text(name).rstrip())
