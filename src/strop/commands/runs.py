"""`strop runs`: the runs in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands.console import out
from strop.readable import clock
from strop.run.listing import list_runs


def command(
    root: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
) -> None:
    """List runs: state, steps, losses, training time."""
    table = Table(
        *("run", "status", "step", "training loss", "held-out loss", "training time", "begun"), box=None, pad_edge=False
    )
    for run in list_runs(root):
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        losses = [f"{loss:.4f}" for loss in (run.base_loss, run.eval_loss) if loss is not None]
        table.add_row(
            escape(str(run.path)),
            run.status,
            steps,
            "" if run.loss is None else f"{run.loss:.4f}",
            " -> ".join(losses),
            "" if run.seconds is None else clock(run.seconds),
            (run.created or "")[:16].replace("T", " "),
        )
    out.print(table)
    if not table.row_count:
        out.print(f"there are no runs in {escape(str(root))} yet; `strop train RECIPE` makes one")
