"""What the commands after a run print."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from strop.present.console import out

if TYPE_CHECKING:  # these import torch, which a message does not need
    from strop.evaluation.chat import ChatSession
    from strop.evaluation.score import Evaluation
    from strop.reporting.serve import PageServer


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
    out.print(table)
    for example in result.examples[:num_examples]:
        out.print(f"\n[dim]{escape(example.row)}[/dim]\n{escape(example.question)}")
        for label, style, answer in (
            ("reference", "dim", example.reference),
            ("base", "red", example.base),
            ("tuned", "green", example.tuned),
        ):
            out.print(f"[{style}]{label:>9}[/{style}]  {escape(answer)}")


def answers(session: ChatSession, prompt: str, compare: bool, show_prompt: bool = False) -> None:
    """Stream the answer to one prompt, the base model's first if asked for."""
    if show_prompt:
        out.print(f"[bold]question[/bold]  {escape(prompt)}")
    for label, tuned in (("base", False), ("tuned", True)) if compare else (("", True),):
        if label:
            out.print(f"[bold]{label}[/bold]  ", end="")
        for piece in session.stream(prompt, tuned):
            out.print(piece, end="", markup=False, soft_wrap=True)
        out.print()


def conversation(session: ChatSession, compare: bool) -> None:
    """Questions from the keyboard until an empty line or the end of input."""
    out.print("[dim]Every question starts afresh. An empty line ends.[/dim]")
    while True:
        try:
            prompt = out.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            return
        if not prompt.strip():
            return
        answers(session, prompt, compare)


def exported(folder: Path, base: str | None) -> None:
    """After `strop export`."""
    record = "" if base else "\nIts adapter_config.json names no base: give --base, or name the base where you load it"
    out.print(f"adapter: {escape(str(folder))} (read back and checked){record}")


def reported(path: Path) -> None:
    """Where a run's page is."""
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


def served(server: PageServer) -> None:
    """Say where the page is and serve it until Ctrl-C."""
    out.print(f"{server.url}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
