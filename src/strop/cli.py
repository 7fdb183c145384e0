"""The command line: arguments in, text and exit codes out. What the commands do is in `strop.api`."""

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from strop.errors import RecipeError, StropError
from strop.recipe import Recipe, load_recipe

app = typer.Typer(
    name="strop",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Fine-tune a language model on your own rows with LoRA.

**First time:** `strop init my.jsonl` writes a recipe. `strop check my.yaml` reads your data and says what would be
learned, with no GPU. `strop plan my.yaml` says what that takes and costs on each GPU. `strop train my.yaml` trains
and writes `runs/my/adapter`, which PEFT and vLLM load.
`strop evaluate runs/my` puts base and tuned side by side; `strop chat runs/my` talks to them.

A **recipe** is a YAML file or the name of a shipped one (`strop recipes`). Any key can be set on the command line:
`strop train my.yaml train.max_steps=60 learning_rate=1e-4`.

**On Modal:** `strop train my.yaml --on modal` does the same there; `strop logs` and `strop pull` find it again.

**Exit codes:** 0 done, 2 recipe or model, 3 data, 4 checkpoint, 5 a loss that is not a number, 6 out of memory,
7 stopped at modal.max_cost (raise it to go on), 8 Modal cannot be reached, 75 interrupted (run the same command again
to go on; 130 if nothing was trained yet), 1 a bug.""",
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, such as train.max_steps=60."),
]


class Place(StrEnum):
    """Where a run can take place."""

    here = "here"
    modal = "modal"


Engine = Literal["strop", "unsloth"]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Your rows: a file, a glob or a hub id.")],
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a hub id.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
) -> None:
    """Write a starter recipe for your data, every line explained."""
    from strop import present
    from strop.api import starter_recipe

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
    from strop import api, present
    from strop.data.audit import refuse

    loaded = load_recipe(recipe, overrides or ())
    present.notes(loaded)
    prepared = api.prepare(loaded, present.note)
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
    from strop import api, present

    loaded = load_recipe(recipe, overrides or ())
    present.notes(loaded)
    present.plan(api.plan(loaded, present.note, probe))


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
    from strop import api, present
    from strop.run.console import console_reporter

    settings = list(overrides or ())
    if Path(recipe, "recipe.yaml").exists():  # a run folder, wherever it has been moved to
        recipe, settings = f"{recipe}/recipe.yaml", [*settings, f"train.output_dir={recipe}"]
    loaded = load_recipe(recipe, [*settings, *([f"train.engine={engine}"] if engine else [])])
    present.notes(loaded)
    if on is Place.modal:
        return _train_on_modal(loaded, detach)
    if detach:
        raise RecipeError("--detach goes with --on modal")
    run = api.train(loaded, console_reporter(loaded.train.logging_steps))
    present.finished(run)


def _train_on_modal(recipe: Recipe, detach: bool) -> None:
    from strop import api, present
    from strop.cloud import require_modal

    require_modal()
    from strop.cloud.launch import launch

    outcome = launch(recipe, present.note, detach=detach)
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
    from strop import present
    from strop.cloud import require_modal

    require_modal()
    from strop.cloud.follow import show_logs

    outcome = show_logs(run, follow)
    if outcome is not None:
        present.note(f"ended with exit code {outcome.exit_code}. Next: strop pull {run}")


@app.command()
def pull(run: RunArgument) -> None:
    """Fetch the folder of a run on Modal: checkpoints, metrics and, once it has finished, the adapter."""
    from strop import present
    from strop.cloud import require_modal

    require_modal()
    from strop.cloud.pull import pull

    pull(run, present.note)


@app.command()
def evaluate(
    run: RunArgument,
    rows: Annotated[int, typer.Option(help="Answers to generate with each model; 0 for the loss alone.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    examples: Annotated[int, typer.Option(help="Answers to print side by side.")] = 3,
) -> None:
    """Held-out loss, and generated answers against the references: base beside tuned.

    The table is also written to evaluation.json in the run folder, with every answer.
    """
    from strop import api, present

    result = api.evaluate(api.Run(run), num_generated=rows, max_new_tokens=max_new_tokens)
    present.evaluation(result, examples)


@app.command()
def chat(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and leave.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Ask a question from the held-out rows.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model too.")] = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
) -> None:
    """Talk to the tuned model, in the template it was trained on."""
    from strop import api, present

    if example:
        prompt = api.held_out_question(api.Run(run))
    session = api.chat(api.Run(run), max_new_tokens, temperature)
    if prompt is None:
        present.conversation(session, compare)
    else:
        present.answers(session, prompt, compare, show_prompt=example)


@app.command()
def export(
    run: RunArgument,
    layout: Annotated[Literal["fused", "split"], typer.Option(help="Of the base that the adapter is to fit.")],
    base: Annotated[str | None, typer.Option(help="Name of that base, for adapter_config.json.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the new adapter folder goes.")] = None,
) -> None:
    """Write the adapter for Phi-3's other checkpoint layout, exactly.

    fused: microsoft's, with qkv_proj and gate_up_proj. split: unsloth's, with q, k, v and gate, up apart.
    """
    from strop import api, present

    present.exported(api.export(api.Run(run), layout, base, output), base)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Whose model the choice is for.")] = None,
    overrides: Overrides = None,
) -> None:
    """Versions, GPU, driver, disk, hub and Modal on one screen, and what the engine would choose here."""
    from strop import api, present

    present.findings(api.doctor(load_recipe(recipe, overrides or ()) if recipe else None))


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
) -> None:
    """List runs: state, steps, losses."""
    from strop import present
    from strop.run.folder import list_runs

    present.runs(list_runs(root))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List the shipped recipes, or print one to start your own from."""
    from strop.recipe import list_recipes, recipe_text

    typer.echo("\n".join(list_recipes()) if name is None else recipe_text(name).rstrip())


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from strop import __version__

        typer.echo(f"strop {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; user errors become one message and a documented exit code, never a traceback."""
    try:
        app()
    except StropError as error:
        from strop import present

        present.error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(0)
