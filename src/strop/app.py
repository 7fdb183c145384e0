"""The command line: every command, and the help. `strop.cli` runs it; commands are in `strop.commands`."""

from typing import Annotated

import typer

from strop import __version__
from strop.commands import (
    chat,
    check,
    doctor,
    evaluate,
    export,
    init,
    lm_eval,
    logs,
    plan,
    pull,
    recipes,
    report,
    runs,
    serve,
    train,
)
from strop.errors import exit_code_help

app = typer.Typer(
    name="strop",
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

# `strop --help` lists them in this order.
app.command("init")(init.command)
app.command("check")(check.command)
app.command("plan")(plan.command)
app.command("recipes")(recipes.command)
app.command("doctor")(doctor.command)
app.command("train")(train.command)
app.command("logs")(logs.command)
app.command("pull")(pull.command)
app.command("runs")(runs.command)
app.command("evaluate")(evaluate.command)
app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lm_eval.command)
app.command("chat")(chat.command)
app.command("serve")(serve.command)
app.command("export")(export.command)
app.command("report")(report.command)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"strop {__version__}")
        raise typer.Exit
