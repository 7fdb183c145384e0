"""The command line: the list of commands, and the help. Each command is a file in `strop.commands`.

A command's file is imported when it is called, so that `strop --help` takes a third of a second and not twice that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from strop import __version__
from strop.errors import exit_code_help
from strop.terminal import message

_UsageError: Any = typer.BadParameter.__bases__[0]
"""Any wrong argument; Typer has no public name for it."""


@contextmanager
def _clean_usage() -> Iterator[None]:
    """Clean what Typer says of arguments: a shell puts the names of files among them."""
    try:
        yield
    except _UsageError as error:
        error.message = message(error.message)
        raise


COMMANDS = {
    "init": "Read your data and write a starter recipe for it, every line explained.",
    "check": "Read, tokenise and audit the data; show what would be learned. Needs no GPU.",
    "plan": "Predict what the run will take and cost on each of Modal's GPUs. Needs no GPU and no weights.",
    "recipes": "List the shipped recipes, or print one to start your own from.",
    "doctor": "Versions, GPU, driver, disk, hub and Modal on one screen, and what the engine would choose here.",
    "train": "Train a recipe, or resume an unfinished run: give a recipe or a run folder.",
    "logs": "Print the log of a run on Modal, from its beginning.",
    "pull": "Fetch the folder of a run on Modal: checkpoints, metrics and, once it has finished, the adapter.",
    "runs": "List runs: state, steps, the last step's loss, that on held-out rows (base -> adapter), training time.",
    "evaluate": "Held-out loss, and generated answers against the references: base beside tuned, with 95% intervals.",
    "lm-eval": "Public benchmarks on the tuned model, by lm-evaluation-harness (`pip install 'strop[lm-eval]'`).",
    "chat": "Talk to the tuned model of a run folder or an endpoint, in the template it was trained on.",
    "serve": "Serve the tuned model and its base with OpenAI's API: here, for a quick try, or on Modal with vLLM.",
    "export": "Write the trained model for other programs, and try it there before it is put in place.",
    "report": "One page about a run, or about several side by side: curves, answers, data, recipe, cost.",
}
"""Each command and the first line of its help, in the order of `strop --help`."""

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def load_command(name: str) -> Any:
    """A command with its options, from its file."""
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    settings = _PASSED_ON if name == "lm-eval" else None
    alone.command(name, context_settings=settings)(import_module(f"strop.commands.{name.replace('-', '_')}").command)
    return typer.main.get_command(alone)


class _Commands(TyperGroup):
    """Lists commands by their first lines, and loads the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=line) for name, line in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest

    def make_context(self, *args: Any, **settings: Any) -> Any:
        with _clean_usage():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _clean_usage():
            return super().invoke(ctx)


app = typer.Typer(
    name="strop",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=f"""Fine-tune a language model on your own rows with LoRA.

**First time:** `strop init my.jsonl` writes a recipe. `strop check my.yaml` reads your data and shows what would be
learned, without a GPU. `strop plan my.yaml` predicts time, memory and cost on each GPU. `strop train my.yaml` trains
and writes `runs/my/adapter`, which PEFT and vLLM load.
`strop evaluate runs/my` compares base and tuned; `strop chat runs/my` talks to them; `strop serve runs/my`
serves both with OpenAI's API.

A **recipe** is a YAML file or the name of a shipped one (`strop recipes`). Any key can be set on the command line:
`strop train my.yaml train.max_steps=60 learning_rate=1e-4`.

**On Modal:** `strop train my.yaml --on modal` does the same there; `strop logs` and `strop pull` find it again.

**Exit codes:**

{exit_code_help()}""",
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"strop {__version__}")
        raise typer.Exit
