"""`strop logs`: the log of a run on Modal."""

from __future__ import annotations

from typing import Annotated

import typer

from strop.commands import console
from strop.commands.console import RunArgument
from strop.modal_runs import require_modal


def command(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the run ends.")] = False,
) -> None:
    """Print the log of a run on Modal, from its beginning."""
    require_modal()
    from strop.modal_runs.follow import show_logs

    outcome = show_logs(run, follow)
    if outcome is not None:
        console.note(f"ended with exit code {outcome.exit_code}. Next: strop pull {run}")
