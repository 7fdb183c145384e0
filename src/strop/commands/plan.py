"""`strop plan`: what a run will take and cost on each GPU, before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands import console
from strop.commands.arguments import as_recipe
from strop.commands.console import Overrides, Printing, RecipeArgument, out
from strop.commands.findings import tell_findings
from strop.commands.load import load_model
from strop.commands.prepare import prepare
from strop.forecast.published import DATE, GPU
from strop.gpus import modal_name, parse_gpu
from strop.modal_runs.prices import current_prices
from strop.readable import clock, counted
from strop.recipe import Recipe, load_recipe
from strop.run.progress import coverage
from strop.run.reporter import Reporter, reporter_for

if TYPE_CHECKING:
    from strop.forecast.estimate import Plan
    from strop.run.manifest import Estimate


def plan(
    recipe: Recipe | str | Path, *, probing: bool | None = None, reporter: Reporter | None = None, quiet: bool = False
) -> Plan:
    """Predict memory, speed, time and dollars of a run on each of Modal's GPUs. Needs no GPU and no weights.

    Args:
        recipe: From `load_recipe`, or what that takes.
        probing: Load the model here and time some of the recipe's steps; None: if there is a GPU. What is measured
            is kept in the run folder, where a run that begins on the same device compares itself with it.
        reporter: Told of what takes a while and of what is chosen; by default lines are printed.
        quiet: Print nothing.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
        OutOfMemoryError: A probe does not fit on this GPU.
    """
    reporter = reporter_for(reporter, quiet)
    with reporter.waiting("loading torch"):
        from strop.forecast.estimate import PlannedRun, measured, plan_of
        from strop.forecast.prediction import keep_prediction
        from strop.forecast.probe import probe
        from strop.model.precision import choose_device

    recipe = as_recipe(recipe)
    probes = choose_device().type == "cuda" if probing is None else probing
    recipe = recipe.on_gpus(parse_gpu(recipe.modal.gpu[0])[1])
    prepared = prepare(recipe, reporter, needs_weights=probes)
    prepared.report.refuse()
    tell_findings(prepared, reporter.note)
    data = prepared.data
    with reporter.waiting("asking Modal for its prices"):
        prices = current_prices()
    job, here = PlannedRun(recipe, prepared.model.config, data.train, data.validation), None
    if probes:
        with reporter.waiting("loading the base model and timing some steps"):
            found = probe(recipe, load_model(recipe, prepared.model, reporter.note), data.train)
        with reporter.waiting("counting the run's work"):
            here = measured(job, modal_name(found.device) or found.device, found, prices)
        keep_prediction(job, found.device, here, reporter.note)
    with reporter.waiting("counting the run's work on each GPU"):
        return plan_of(job, prices, here)


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    probe: Annotated[
        bool | None,
        typer.Option("--probe/--no-probe", help="Time some steps on this machine. [default: if it has a GPU]"),
    ] = None,
) -> None:
    """Predict what the run will take and cost on each of Modal's GPUs. Needs no GPU and no weights.

    A line is measured if this machine has the GPU; otherwise it is scaled from published measurements, with its range.
    """
    loaded = load_recipe(recipe, overrides or ())
    console.notes(loaded)
    found = plan(loaded, probing=probe, reporter=Printing())
    out.print(plan_table(found))
    for line in plan_notes(found):
        out.print(line, markup=False)


def plan_table(plan: Plan) -> Table:
    """A line for each GPU; the recipe's own is marked."""
    table = Table(
        *("GPU", "how", "held in", "GiB", "tok/s", "samples/s", "time", "$/h", "$", "range"),
        box=None,
        padding=(0, 1, 0, 0),
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
    yield "" if line.dollars is None else f"{3600 * line.dollars / line.seconds:.2f}"
    yield "" if line.dollars is None else f"{line.dollars:,.2f}"
    yield f"x{line.range[0]:g}-{line.range[1]:g}"


def plan_notes(plan: Plan) -> Iterator[str]:
    """What the table rests on, and the recipe's own GPU in words."""
    from strop.forecast.estimate import START_SECONDS

    work = plan.workload
    sharing = f", {work.sharing:.2f} tokens of the rows for each token computed" if work.sharing > 1 else ""
    samples = counted(plan.samples_per_step, "sample")
    seen = coverage(work.num_steps, plan.samples_per_step, plan.num_samples)
    yield f"{counted(work.num_steps, 'step')} of {samples}: {seen}{sharing}"
    yield (
        f"time and $ include {START_SECONDS:.0f} s to start, {counted(work.evaluations, 'evaluation')} and "
        f"{counted(work.saves, 'checkpoint')}; prices: {plan.prices.source}"
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


def _dollars(line: Estimate, factor: float) -> str:
    return "no price" if line.dollars is None else f"${line.dollars * factor:,.2f}"
