"""`strop check`: what would be learned from the rows, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from strop.commands import console
from strop.commands.console import Overrides, RecipeArgument, out
from strop.commands.prepare import Prepared, prepare
from strop.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from strop.data.audit import Lengths, PreviewRow, StoreReport


def check(recipe: Recipe, *, note: Callable[[str], None] = lambda line: None) -> Prepared:
    """Read, tokenise and audit a recipe's data and see that LoRA finds its modules; needs no GPU.

    Args:
        recipe: From `load_recipe`.
        note: Told of what takes a while, such as converting a GGUF file.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
    """
    prepared = prepare(recipe, note)
    prepared.report.refuse()
    return prepared


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    preview: Annotated[int, typer.Option(help="Rows to show with their learned tokens marked.")] = 3,
) -> None:
    """Read, tokenise and audit the data; show what would be learned. Needs no GPU."""
    loaded = load_recipe(recipe, overrides or ())
    console.notes(loaded)
    prepared = prepare(loaded, console.note)
    _print_audit(prepared, preview)
    prepared.report.refuse()
    out.print(f"[green]This will train.[/green] Next: strop train {escape(recipe)}")


def _print_audit(prepared: Prepared, num_preview: int) -> None:
    report = prepared.report
    learned = "the answers" if report.train_on == "completion" else "everything"
    out.print(
        f"format [bold]{prepared.data.format}[/bold], template [bold]{report.template}[/bold], "
        f"learned: {learned}; "
        f"stop tokens {escape(' '.join(report.stop_tokens))}; at most {report.max_seq_length:,} tokens a sample"
    )
    _sources(report.train)
    table = Table("", "training", "held out", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, show in _AUDIT_ROWS:
        table.add_row(label, show(report.train), show(report.validation) if report.validation else "")
    out.print(table)
    _histogram(report.train.lengths)
    for line in _warnings(prepared):
        out.print(f"[yellow]note:[/yellow] {escape(line)}")
    for row in report.preview[:num_preview]:
        out.print(_preview(row))


def _sources(part: StoreReport) -> None:
    """How each source was read, and of a mixture, its share of an epoch."""
    for line in part.found:
        out.print(f"[dim]{escape(line)}[/dim]")
    for source in part.sources:
        if source.columns:
            out.print(f"columns {escape(source.columns)} [dim]({escape(source.name)})[/dim]")
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


def _warnings(prepared: Prepared) -> list[str]:
    train, overlap = prepared.report.train, prepared.report.overlap
    lines = [
        f"{count:,} {'row is' if count == 1 else 'rows are'} skipped: {kind}" for kind, count in train.skipped.items()
    ]
    if train.unused:
        keys = ", ".join(f"{key} ({count:,} {'row' if count == 1 else 'rows'})" for key, count in train.unused.items())
        lines.append(f"not used: {keys}")
    if train.samples > train.rows_kept:
        lines.append(
            f"{train.rows_kept:,} rows give {train.samples:,} samples, one for each answer: the chat template changes "
            "earlier turns when more follow, or documents are split"
        )
    lines += _template_notes(prepared)
    if train.stop_cut:
        lines.append(f"{train.stop_cut:,} samples are cut at model.max_seq_length and do not learn to stop")
    if train.special_text:
        where = ", ".join(map(str, train.special_text_origins))
        lines.append(
            f"{train.special_text:,} rows contain the text of control tokens, which become those tokens: {where}"
        )
    if overlap and overlap.prompts:
        lines.append(
            f"{overlap.rows:,} held-out rows are also training rows, and {overlap.prompts:,} share a training "
            "row's question; the held-out loss will look better than it is"
        )
    if prepared.data.validation is None:
        lines.append("no rows are held out, so learning and memorising will look the same: set data.validation_file")
    return lines


def _template_notes(prepared: Prepared) -> list[str]:
    """What the template does to rows that could be meant in another way."""
    report, formats = prepared.report, {source.shape.format for source in prepared.data.sources}
    if "prompt_completion" in formats and report.template == "plain":
        return [
            "prompt and completion are joined as they are, and no chat template is used; data.template: chat makes "
            "them a question and its answer"
        ]
    if "prompt_completion" in formats and report.template == "chat":
        return [
            "prompt and completion are a question and its answer in the model's chat template; data.template: plain "
            "joins them as they are"
        ]
    return []


def _preview(row: PreviewRow) -> Text:
    """A sample with its learned tokens in green (marked with brackets where there is no colour)."""
    text = Text(f"\n{row.origin}\n", style="dim")
    marks = out.color_system is None
    inside = False
    for token, learned in zip(row.tokens, row.learned, strict=True):
        if marks and learned != inside:
            text.append("[" if learned else "]")
        inside = learned
        shown = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
        text.append(shown, style="bold green" if learned else "dim")
    return text.append("]" if marks and inside else "")
