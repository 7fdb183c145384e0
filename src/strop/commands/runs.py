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
    root: Annotated[Path, typer.Argument(readable=False, help="The folder that holds run folders.")] = Path("runs"),
) -> None:
    """List runs: state, steps, the last step's loss, that on held-out rows (base -> adapter), training time."""
    headings = ("run", "status", "step", "loss", "held out", "time", "begun")
    table = Table(*headings, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns[1:-1]:  # the time of beginning gives way before the name does
        column.no_wrap = True
    for run in list_runs(root):
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        base = "" if run.base_loss is None else f"{run.base_loss:.4f} (base)"
        adapter = "" if run.eval_loss is None else f"{run.eval_loss:.4f}"
        table.add_row(
            escape(str(run.path)),
            run.status,
            steps,
            "" if run.loss is None else f"{run.loss:.4f}",
            " -> ".join(filter(None, (base, adapter))),
            "" if run.seconds is None else clock(run.seconds),
            (run.created or "")[:16].replace("T", " "),
        )
    out.print(table)
    if not table.row_count:
        out.print(f"there are no runs in {escape(str(root))} yet; `strop train RECIPE` makes one")
