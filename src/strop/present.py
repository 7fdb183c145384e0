"""What the commands print. Tables and colour on a terminal, the same words without them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from strop.api import Finding, Prepared, Run
from strop.errors import StropError
from strop.recipe import Recipe
from strop.run.console import clock
from strop.run.folder import RunSummary

if TYPE_CHECKING:  # these import torch, which a message does not need
    from strop.data.audit import Lengths, PreviewRow, StoreReport
    from strop.evaluation.chat import ChatSession
    from strop.evaluation.score import Evaluation
    from strop.forecast.estimate import Plan

_out = Console(highlight=False)


def notes(recipe: Recipe) -> None:
    """What reading the recipe took for granted."""
    for note in recipe.notes:
        _out.print(f"[dim]recipe: {escape(note)}[/dim]")


def note(line: str) -> None:
    """Something that takes a while, or was chosen."""
    _out.print(line, markup=False)


def wrote_recipe(path: Path) -> None:
    """After `strop init`."""
    _out.print(f"wrote {escape(str(path))}. Next: strop check {escape(str(path))}")


def ready(recipe: str) -> None:
    """After a `strop check` that found nothing wrong."""
    _out.print(f"[green]This will train.[/green] Next: strop train {escape(recipe)}")


def audit(prepared: Prepared, num_preview: int) -> None:
    """The whole report of `strop check`."""
    report = prepared.report
    found = " (found from the rows)" if prepared.data.format_detected else ""
    learned = "the answers" if report.train_on == "completion" else "everything"
    _out.print(
        f"format [bold]{prepared.data.format}[/bold]{found}, template [bold]{report.template}[/bold], "
        f"learned: {learned}; "
        f"stop tokens {escape(' '.join(report.stop_tokens))}; at most {report.max_seq_length:,} tokens a sample"
    )
    table = Table("", "training", "held out", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, show in _AUDIT_ROWS:
        table.add_row(label, show(report.train), show(report.validation) if report.validation else "")
    _out.print(table)
    _histogram(report.train.lengths)
    for line in _warnings(prepared):
        _out.print(f"[yellow]note:[/yellow] {escape(line)}")
    for row in report.preview[:num_preview]:
        _out.print(_preview(row))


_AUDIT_ROWS: list[tuple[str, Callable[[StoreReport], str]]] = [
    ("rows read", lambda part: f"{part.rows_read:,}"),
    ("rows used", lambda part: f"{part.rows_kept:,}"),
    ("tokens", lambda part: f"{part.num_tokens:,}"),
    ("learned tokens", lambda part: f"{part.num_loss_tokens:,} ({part.num_loss_tokens / part.num_tokens:.0%})"),
    ("tokens a sample: least", lambda part: f"{part.lengths.min:,}"),
    ("  median", lambda part: f"{part.lengths.median:,.0f}"),
    ("  95% have at most", lambda part: f"{part.lengths.p95:,.0f}"),
    ("  most", lambda part: f"{part.lengths.max:,}"),
    ("samples that learn to stop", lambda part: f"{part.stop_learned:,}"),
    ("cut at the limit", lambda part: f"{part.truncated:,}"),
    ("shared prefix, tokens", lambda part: f"{part.shared_prefix:,}"),
    ("repeated rows", lambda part: f"{part.duplicates:,}"),
]


def _histogram(lengths: Lengths) -> None:
    most = max(lengths.counts)
    for low, high, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        if count:
            bar = "█" * max(1, round(40 * count / most))
            _out.print(f"[dim]{low:>7,}-{high - 1:<7,}[/dim] {bar} {count:,}")


def _warnings(prepared: Prepared) -> list[str]:
    train, overlap = prepared.report.train, prepared.report.overlap
    lines = [f"{count:,} rows are left out: {kind}" for kind, count in train.skipped.items()]
    if train.stop_cut:
        lines.append(
            f"{train.stop_cut:,} samples lose their end at model.max_seq_length and do not learn to stop there"
        )
    if train.special_text:
        where = ", ".join(map(str, train.special_text_origins))
        lines.append(f"{train.special_text:,} rows hold the text of control tokens, which become those tokens: {where}")
    if overlap and overlap.prompts:
        lines.append(
            f"{overlap.rows:,} held-out rows are also training rows, and {overlap.prompts:,} share a training "
            "row's question; the held-out loss will look better than it is"
        )
    if prepared.data.validation is None:
        lines.append("no rows are held out, so nothing will tell learning from memorising: set data.validation_file")
    return lines


def _preview(row: PreviewRow) -> Text:
    """A sample with its learned tokens in green (marked with brackets where there is no colour)."""
    text = Text(f"\n{row.origin}\n", style="dim")
    marks = _out.color_system is None
    inside = False
    for token, learned in zip(row.tokens, row.learned, strict=True):
        if marks and learned != inside:
            text.append("[" if learned else "]")
        inside = learned
        shown = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
        text.append(shown, style="bold green" if learned else "dim")
    return text.append("]" if marks and inside else "")


def plan(found: Plan) -> None:
    """The table of `strop plan` and what it rests on."""
    from strop.forecast.table import plan_notes, plan_table

    _out.print(plan_table(found))
    for line in plan_notes(found):
        _out.print(line, markup=False)


def finished(run: Run) -> None:
    """After a training."""
    progress, dollars = run.manifest["progress"], run.manifest.get("dollars")
    cost = "" if dollars is None else f", ${dollars:.2f}"
    last = [record for record in run.metrics() if record["kind"] == "eval"]
    losses = f", held-out loss {last[0]['eval_loss']:.4f} -> {last[-1]['eval_loss']:.4f}" if len(last) > 1 else ""
    if len(last) == 1:
        losses = f", held-out loss {last[0]['eval_loss']:.4f}"
    _out.print(
        f"[green]done[/green]: {progress['step']} steps in {clock(progress['seconds'])}{losses}{cost}\n"
        f"adapter: {escape(str(run.adapter_path))} (saved, read back and checked)\n"
        f"Next: strop evaluate {escape(str(run.path))}"
    )


def evaluation(result: Evaluation, num_examples: int) -> None:
    """Base beside tuned, and some answers of both."""
    table = Table("", "base", "tuned", title=f"{result.num_rows} held-out rows", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    pairs = [("loss (nats a token)", "nll", "{:.4f}"), ("perplexity", "perplexity", "{:.3f}")]
    if result.num_generated:
        suffix = f" of {result.num_generated}"
        pairs += [
            (f"exact match{suffix}", "exact_match", "{:.0%}"),
            (f"numbers match{suffix}", "numeric_match", "{:.0%}"),
            (f"stopped by itself{suffix}", "stopped", "{:.0%}"),
        ]
    for label, name, form in pairs:
        values = [getattr(scores, name) for scores in (result.base, result.tuned)]
        table.add_row(label, *("-" if value is None else form.format(value) for value in values))
    _out.print(table)
    for example in result.examples[:num_examples]:
        _out.print(f"\n[dim]{escape(example.row)}[/dim]\n{escape(example.question)}")
        for label, style, answer in (
            ("reference", "dim", example.reference),
            ("base", "red", example.base),
            ("tuned", "green", example.tuned),
        ):
            _out.print(f"[{style}]{label:>9}[/{style}]  {escape(answer)}")


def answers(session: ChatSession, prompt: str, compare: bool, show_prompt: bool = False) -> None:
    """Stream the answer to one prompt, the base model's first if asked for."""
    if show_prompt:
        _out.print(f"[bold]question[/bold]  {escape(prompt)}")
    for label, tuned in (("base", False), ("tuned", True)) if compare else (("", True),):
        if label:
            _out.print(f"[bold]{label}[/bold]  ", end="")
        for piece in session.stream(prompt, tuned):
            _out.print(piece, end="", markup=False, soft_wrap=True)
        _out.print()


def conversation(session: ChatSession, compare: bool) -> None:
    """Questions from the keyboard until an empty line or the end of input."""
    _out.print("[dim]Every question starts afresh. An empty line ends.[/dim]")
    while True:
        try:
            prompt = _out.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            return
        if not prompt.strip():
            return
        answers(session, prompt, compare)


def findings(found: Iterable[Finding]) -> None:
    """The report of `strop doctor`, a line for each finding as soon as it is there."""
    for finding in found:
        _out.print(f"[bold]{escape(finding.topic):10}[/bold] {escape(finding.value)}", soft_wrap=True)
        if finding.advice:
            _out.print(f"{'':10} [yellow]{escape(finding.advice)}[/yellow]", soft_wrap=True)


def exported(folder: Path, base: str | None) -> None:
    """After `strop export`."""
    record = "" if base else "\nIts adapter_config.json names no base: give --base, or name the base where you load it"
    _out.print(f"adapter: {escape(str(folder))} (read back and checked){record}")


def runs(summaries: list[RunSummary]) -> None:
    """The table of `strop runs`."""
    table = Table("run", "status", "step", "loss", "held-out", "begun", box=None, pad_edge=False)
    for run in summaries:
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        losses = ("" if loss is None else f"{loss:.4f}" for loss in (run.loss, run.eval_loss))
        table.add_row(escape(str(run.path)), run.status, steps, *losses, (run.created or "")[:16].replace("T", " "))
    _out.print(table)


def error(problem: StropError) -> None:
    """The one message that a user's mistake gets."""
    Console(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(str(problem))}", soft_wrap=True)
