"""`strop lm-eval`: public benchmarks on a run's model, by lm-evaluation-harness."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from strop.commands.console import RunArgument
from strop.commands.run import Run
from strop.errors import RecipeError


def lm_eval(run: Run, arguments: Sequence[str], *, tuned: bool = True) -> None:
    """lm-eval's own command line on a run.

    Args:
        run: A finished run.
        arguments: Of `lm-eval run`, without --model and --model_args.
        tuned: False asks the base model.

    Raises:
        RecipeError: The run has not finished, or its path cannot be written as a model argument.
    """
    run.require_adapter()
    from strop.commands.harness import MODEL  # registers it, or raises an error that names the extra to install

    from lm_eval.__main__ import cli_evaluate  # isort: skip

    path = str(run.path.resolve())
    if set(path) & set(",="):
        raise RecipeError(f"lm-eval cannot take a path with a comma or an equals sign: {path}; move the run")
    before = sys.argv
    sys.argv = ["lm-eval", "run", "--model", MODEL, "--model_args", f"run={path},tuned={tuned}", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def command(
    context: typer.Context,
    run: RunArgument,
    base: Annotated[bool, typer.Option("--base", help="Score the base model instead.")] = False,
) -> None:
    """Public benchmarks on the tuned model, by lm-evaluation-harness (`pip install 'strop[lm-eval]'`).

    All further options are those of `lm-eval run`, for example: `strop lm-eval runs/my --tasks gsm8k --limit 100`.
    """
    lm_eval(Run(run), context.args, tuned=not base)
