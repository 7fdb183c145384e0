"""The application that the commands register with, its help, and the arguments that several of them take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from strop.errors import exit_code_help

app = typer.Typer(
    name="strop",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=f"""Fine-tune a language model on your own rows with LoRA.

**First time:** `strop init my.jsonl` writes a recipe. `strop check my.yaml` reads your data and says what would be
learned, with no GPU. `strop plan my.yaml` says what that takes and costs on each GPU. `strop train my.yaml` trains
and writes `runs/my/adapter`, which PEFT and vLLM load.
`strop evaluate runs/my` puts base and tuned side by side; `strop chat runs/my` talks to them; `strop serve runs/my`
answers OpenAI's API with them.

A **recipe** is a YAML file or the name of a shipped one (`strop recipes`). Any key can be set on the command line:
`strop train my.yaml train.max_steps=60 learning_rate=1e-4`.

**On Modal:** `strop train my.yaml --on modal` does the same there; `strop logs` and `strop pull` find it again.

**Exit codes:**

{exit_code_help()}""",
)


class Place(StrEnum):
    """Where a run can take place, and its model be served."""

    here = "here"
    modal = "modal"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, such as train.max_steps=60."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from strop import __version__

        typer.echo(f"strop {__version__}")
        raise typer.Exit
