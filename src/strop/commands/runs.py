"""`strop runs`: the runs in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands.console import out
from strop.run.listing import list_runs


def command(
    root: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
) -> None:
    """List runs: state, steps, losses."""
    table = Table("run", "status", "step", "loss", "held-out", "begun", box=None, pad_edge=False)
    for run in list_runs(root):
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        losses = ("" if loss is None else f"{loss:.4f}" for loss in (run.loss, run.eval_loss))
        table.add_row(escape(str(run.path)), run.status, steps, *losses, (run.created or "")[:16].replace("T", " "))
    out.print(table)
