"""A run, here or on Modal, and what runs there are."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from strop.cli.app import Overrides, Place, RecipeArgument, RunArgument, app
from strop.errors import RecipeError
from strop.recipe import Recipe, load_recipe

Engine = Literal["strop", "unsloth"]


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[Place, typer.Option(help="Train here, or on a GPU of Modal's (docs/modal.md).")] = Place.here,
    detach: Annotated[bool, typer.Option("--detach", help="With --on modal: start the run and leave it.")] = False,
    engine: Annotated[
        Engine | None, typer.Option(help="Compute the steps with strop, or with Unsloth and TRL's trainer.")
    ] = None,
) -> None:
    """Train, or go on with an unfinished run: give a recipe, or a run folder to resume.

    Ctrl-C saves a checkpoint and stops; the same command goes on from it.
    """
    from strop import api
    from strop.present import console
    from strop.present import during as present
    from strop.run.live import console_reporter

    settings = list(overrides or ())
    if Path(recipe, "recipe.yaml").exists():  # a run folder, wherever it has been moved to
        recipe, settings = f"{recipe}/recipe.yaml", [*settings, f"train.output_dir={recipe}"]
    loaded = load_recipe(recipe, [*settings, *([f"train.engine={engine}"] if engine else [])])
    console.notes(loaded)
    if on is Place.modal:
        return _train_on_modal(loaded, detach)
    if detach:
        raise RecipeError("--detach goes with --on modal")
    run = api.train(loaded, console_reporter(loaded.train.logging_steps, loaded.modal.max_cost))
    present.finished(run)


def _train_on_modal(recipe: Recipe, detach: bool) -> None:
    from strop import api
    from strop.modal_runs import require_modal
    from strop.present import console
    from strop.present import during as present

    require_modal()
    from strop.modal_runs.launch import launch

    outcome = launch(recipe, console.note, detach=detach)
    if outcome is not None and outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    if outcome is not None:
        present.finished(api.Run(recipe.output_dir))


@app.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for what comes, until the run ends.")] = False,
) -> None:
    """Print the log of a run on Modal, from its beginning."""
    from strop.modal_runs import require_modal
    from strop.present import console

    require_modal()
    from strop.modal_runs.follow import show_logs

    outcome = show_logs(run, follow)
    if outcome is not None:
        console.note(f"ended with exit code {outcome.exit_code}. Next: strop pull {run}")


@app.command()
def pull(run: RunArgument) -> None:
    """Fetch the folder of a run on Modal: checkpoints, metrics and, once it has finished, the adapter."""
    from strop.modal_runs import require_modal
    from strop.present import console

    require_modal()
    from strop.modal_runs.pull import pull

    pull(run, console.note)


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
) -> None:
    """List runs: state, steps, losses."""
    from strop.present import during as present
    from strop.run.folder import list_runs

    present.runs(list_runs(root))
