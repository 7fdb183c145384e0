"""The table of `strop plan`."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from strop.forecast.estimate import START_SECONDS, Estimate, Plan
from strop.forecast.published import DATE, GPU
from strop.run.reporter import clock


def plan_table(plan: Plan) -> Table:
    """A line for each GPU; the recipe's own is marked."""
    table = Table(
        "GPU", "how", "held in", "GiB", "tok/s", "samples/s", "time", "$", "range", box=None, padding=(0, 1, 0, 0)
    )
    for column in table.columns[3:]:
        column.justify = "right"
    for line in plan.lines:
        table.add_row(*_cells(line, line is plan.own), style="bold" if line is plan.own else None)
    return table


def _cells(line: Estimate, own: bool) -> Iterator[str]:
    yield escape(line.gpu) + ("*" if own else "")
    yield line.source if line.problem is None else "[red]no[/red]"
    yield line.precision
    yield f"{line.peak_gib:.0f}/{line.memory_gib:.0f}" if line.problem is None and line.memory_gib else ""
    if line.problem is not None:
        return
    yield f"{line.tokens_per_second:,.0f}"
    yield f"{line.samples_per_second:,.1f}"
    yield clock(line.seconds)
    yield "" if line.dollars is None else f"{line.dollars:,.2f}"
    yield f"x{line.range[0]:g}-{line.range[1]:g}"


def plan_notes(plan: Plan) -> Iterator[str]:
    """What the table rests on, and the recipe's own GPU in words."""
    work = plan.workload
    sharing = f", {work.sharing:.2f} tokens of the rows for each token computed" if work.sharing > 1 else ""
    yield f"{work.num_steps:,} steps of {plan.samples_per_step} samples{sharing}"
    yield (
        f"time and $ count {START_SECONDS:.0f} s of starting, {work.evaluations} evaluations and {work.saves} "
        f"checkpoints; prices: {plan.prices.source}"
    )
    if any(line.source == "scaled" for line in plan.lines):
        yield f"scaled: from figures measured on one {GPU} on {DATE} and each GPU's published rates; docs/plan.md"
    for line in plan.lines:
        if line.problem is not None:
            yield f"{line.gpu}: {line.problem}"
    own = plan.own
    if own.problem is None:
        best, worst = own.range
        yield (
            f"* the recipe's own, {own.gpu}: {clock(own.seconds)} ({clock(own.seconds * best)} to "
            f"{clock(own.seconds * worst)}), {_dollars(own, 1)} ({_dollars(own, best)} to {_dollars(own, worst)})"
        )
    if plan.idle:
        yield f"this version trains on one GPU: the others of {own.gpu} are paid for and idle"


def _dollars(line: Estimate, factor: float) -> str:
    return "no price" if line.dollars is None else f"${line.dollars * factor:,.2f}"
