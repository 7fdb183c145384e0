"""`strop check`: what would be learned from the rows, before anything is trained."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands import console
from strop.commands.arguments import as_recipe
from strop.commands.console import Overrides, Printing, RecipeArgument, out
from strop.commands.findings import notes, readings, tell_findings
from strop.commands.prepare import Prepared, prepare
from strop.commands.preview import render_samples
from strop.recipe import Recipe, load_recipe
from strop.run.reporter import Reporter, reporter_for
from strop.run.trackers.tracker import require

if TYPE_CHECKING:
    from strop.data.audit import Lengths, StoreReport


def check(recipe: Recipe | str | Path, *, reporter: Reporter | None = None, quiet: bool = False) -> Prepared:
    """Read, tokenise and audit a recipe's data and see that LoRA finds its modules; needs no GPU.

    Args:
        recipe: From `load_recipe`, or what that takes.
        reporter: Told of what takes a while and of what was found; by default lines are printed.
        quiet: Print nothing.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
    """
    recipe, reporter = as_recipe(recipe), reporter_for(reporter, quiet)
    prepared = prepare(recipe, reporter)
    prepared.report.refuse()
    require(recipe.train.report_to)
    tell_findings(prepared, reporter.note)
    return prepared


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    preview: Annotated[int, typer.Option(help="Rows to show with their learned tokens marked.")] = 3,
) -> None:
    """Read, tokenise and audit the data; show what would be learned. Needs no GPU."""
    loaded = load_recipe(recipe, overrides or ())
    console.notes(loaded)
    prepared = prepare(loaded, Printing())
    _print_audit(prepared, preview)
    prepared.report.refuse()
    require(loaded.train.report_to)
    same = shlex.join(["strop", "train", recipe, *(overrides or ())])
    out.print(f"[green]This will train.[/green] Next: {escape(same)}", soft_wrap=True)


def _print_audit(prepared: Prepared, num_preview: int) -> None:
    report = prepared.report
    learned = "the answers" if report.train_on == "completion" else "everything"
    out.print(
        f"format [bold]{prepared.data.format}[/bold], template [bold]{report.template}[/bold], "
        f"learned: {learned}; "
        f"stop tokens {escape(' '.join(report.stop_tokens))}; at most {report.max_seq_length:,} tokens a sample"
    )
    for line in readings(prepared):
        out.print(escape(line))
    _sources(report.train)
    table = Table("", "training", "held out", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, show in _AUDIT_ROWS:
        table.add_row(label, show(report.train), show(report.validation) if report.validation else "")
    out.print(table)
    _histogram(report.train.lengths)
    for line in notes(prepared):
        out.print(f"[yellow]note:[/yellow] {escape(line)}")
    for text in render_samples(report.preview[:num_preview], out.color_system is not None):
        out.print(text)


def _sources(part: StoreReport) -> None:
    """The share that each source of a mixture has of an epoch."""
    if len(part.sources) == 1:
        return
    table = Table("source", "format", "samples", "in an epoch", "share", "share of tokens", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    samples = sum(source.epoch_samples for source in part.sources)
    tokens = sum(source.epoch_tokens for source in part.sources)
    for source in part.sources:
        share, of_tokens = source.epoch_samples / samples, source.epoch_tokens / tokens
        table.add_row(
            escape(source.name),
            source.format,
            f"{source.samples:,}",
            f"{source.epoch_samples:,}",
            f"{share:.1%}",
            f"{of_tokens:.1%}",
        )
    out.print(table)


_AUDIT_ROWS: list[tuple[str, Callable[[StoreReport], str]]] = [
    ("rows read", lambda part: f"{part.rows_read:,}"),
    ("rows used", lambda part: f"{part.rows_kept:,}"),
    ("samples", lambda part: f"{part.samples:,}"),
    ("tokens", lambda part: f"{part.num_tokens:,}"),
    ("learned tokens", lambda part: f"{part.num_loss_tokens:,} ({part.num_loss_tokens / part.num_tokens:.0%})"),
    ("tokens a sample: least", lambda part: f"{part.lengths.min:,}"),
    ("  median", lambda part: f"{part.lengths.median:,.0f}"),
    ("  95% have at most", lambda part: f"{part.lengths.p95:,.0f}"),
    ("  most", lambda part: f"{part.lengths.max:,}"),
    ("samples that learn to stop", lambda part: f"{part.stop_learned:,}"),
    ("cut at the limit", lambda part: f"{part.truncated:,} ({part.tokens_cut:,} tokens)"),
    ("shared prefix, tokens", lambda part: f"{part.shared_prefix:,}"),
    ("repeated rows", lambda part: f"{part.duplicates:,}"),
]


def _histogram(lengths: Lengths) -> None:
    most = max(lengths.counts)
    for low, high, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        if count:
            bar = "█" * max(1, round(40 * count / most))
            out.print(f"[dim]{low:>7,}-{high - 1:<7,}[/dim] {bar} {count:,}")
