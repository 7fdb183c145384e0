"""What is said of a run, and of the runs there are."""

from rich.markup import escape
from rich.table import Table

from strop.api import Run
from strop.present.console import out
from strop.run.folder import RunSummary
from strop.run.reporter import clock


def finished(run: Run) -> None:
    """After a training."""
    progress, dollars = run.manifest["progress"], run.manifest.get("dollars")
    cost = "" if dollars is None else f", ${dollars:.2f}"
    last = [record for record in run.metrics() if record["kind"] == "eval"]
    losses = f", held-out loss {last[0]['eval_loss']:.4f} -> {last[-1]['eval_loss']:.4f}" if len(last) > 1 else ""
    if len(last) == 1:
        losses = f", held-out loss {last[0]['eval_loss']:.4f}"
    out.print(
        f"[green]done[/green]: {progress['step']} steps in {clock(progress['seconds'])}{losses}{cost}\n"
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
