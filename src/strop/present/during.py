"""What is said of a run, and of the runs there are."""

from rich.markup import escape
from rich.table import Table

from strop.api import Run
from strop.present.console import out
from strop.run.folder import RunSummary
from strop.run.progress import Progress
from strop.run.records import EvalRecord
from strop.run.reporter import clock


def finished(run: Run) -> None:
    """After a training."""
    progress, dollars = run.manifest.progress or Progress(), run.manifest.dollars
    cost = "" if dollars is None else f", ${dollars:.2f}"
    held_out = [record.eval_loss for record in run.metrics() if isinstance(record, EvalRecord)]
    ends = [held_out[0], held_out[-1]] if len(held_out) > 1 else held_out
    losses = f", held-out loss {' -> '.join(f'{loss:.4f}' for loss in ends)}" if ends else ""
    out.print(
        f"[green]done[/green]: {progress.step} steps in {clock(progress.seconds)}{losses}{cost}\n"
        f"adapter: {escape(str(run.adapter_path))} (saved, read back and checked)\n"
        f"Next: strop evaluate {escape(str(run.path))}"
    )


def runs(summaries: list[RunSummary]) -> None:
    """The table of `strop runs`."""
    table = Table("run", "status", "step", "loss", "held-out", "begun", box=None, pad_edge=False)
    for run in summaries:
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        losses = ("" if loss is None else f"{loss:.4f}" for loss in (run.loss, run.eval_loss))
        table.add_row(escape(str(run.path)), run.status, steps, *losses, (run.created or "")[:16].replace("T", " "))
    out.print(table)
