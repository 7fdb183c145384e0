"""Before a run: the recipe, the data, what it will take, and what this machine has."""

import re
from pathlib import Path
from typing import Annotated

import typer

from strop.cli.app import Overrides, RecipeArgument, app
from strop.errors import RecipeError
from strop.recipe import load_recipe


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Your rows: a file, a glob or a hub id.")],
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a hub id.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
) -> None:
    """Write a starter recipe for your data, every line explained."""
    from strop.api import starter_recipe
    from strop.present import before as present

    path = output or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(data).stem).strip('-._') or 'recipe'}.yaml")
    if path.exists():
        raise RecipeError(f"{path} exists already; name another file with --output")
    path.write_text(starter_recipe(data, model), encoding="utf-8")
    present.wrote_recipe(path)


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    preview: Annotated[int, typer.Option(help="Rows to show with their learned tokens marked.")] = 3,
) -> None:
    """Read, tokenise and audit the data; say what would be learned. Needs no GPU."""
    from strop import api
    from strop.data.audit import refuse
    from strop.present import before as present
    from strop.present import console

    loaded = load_recipe(recipe, overrides or ())
    console.notes(loaded)
    prepared = api.prepare(loaded, console.note)
    present.audit(prepared, preview)
    refuse(prepared.report)
    present.ready(recipe)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    probe: Annotated[
        bool | None,
        typer.Option("--probe/--no-probe", help="Time some steps on this machine. [default: if it has a GPU]"),
    ] = None,
) -> None:
    """Say what the run will take and cost on each of Modal's GPUs. Needs no GPU and no weights.

    A line is measured where this machine has the GPU, and else scaled from published measurements, with its range.
    """
    from strop import api
    from strop.present import before as present
    from strop.present import console

    loaded = load_recipe(recipe, overrides or ())
    console.notes(loaded)
    present.plan(api.plan(loaded, console.note, probe))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List the shipped recipes, or print one to start your own from."""
    from strop.recipe import list_recipes, recipe_text

    typer.echo("\n".join(list_recipes()) if name is None else recipe_text(name).rstrip())


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Whose model the choice is for.")] = None,
    overrides: Overrides = None,
) -> None:
    """Versions, GPU, driver, disk, hub and Modal on one screen, and what the engine would choose here."""
    from strop import api
    from strop.present import before as present

    present.findings(api.doctor(load_recipe(recipe, overrides or ()) if recipe else None))
