"""What the commands after a run print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from strop.present import console
from strop.present.console import out

if TYPE_CHECKING:  # these import torch, which a message does not need
    from strop.cloud.serving import Deployed
    from strop.evaluation.chat import ChatSession
    from strop.evaluation.score import Evaluation
    from strop.serving.client import EndpointSession

    Session = ChatSession | EndpointSession


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


def answers(session: Session, prompt: str, compare: bool, show_prompt: bool = False) -> None:
    """Stream the answer to one prompt, the base model's first if asked for."""
    if show_prompt:
        out.print(f"[bold]question[/bold]  {escape(prompt)}")
    for label, tuned in (("base", False), ("tuned", True)) if compare else (("", True),):
        if label:
            out.print(f"[bold]{label}[/bold]  ", end="")
        for piece in session.stream(prompt, tuned):
            out.print(piece, end="", markup=False, soft_wrap=True)
        out.print()


def conversation(session: Session, compare: bool) -> None:
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


def serving(name: str, url: str, api_key_env: str | None) -> None:
    """Once `strop serve` answers: where, and how to call it."""
    header = f' -H "Authorization: Bearer ${api_key_env}"' if api_key_env else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "..."}}]}}'
    key = f"STROP_API_KEY=${api_key_env} " if api_key_env else ""
    for line in (
        f"serving {name} (tuned) and base on {url}/v1. Ctrl-C ends",
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'",
        f"{key}strop chat {url} --compare",
    ):
        console.note(line)


def deployed(run: Path, endpoint: Deployed) -> None:
    """After `strop serve --on modal`: where, for how much, how to call it and how to end it."""
    body = f'{{"model": "{endpoint.name}", "messages": [{{"role": "user", "content": "..."}}]}}'
    token = '-H "Modal-Key: $MODAL_PROXY_TOKEN_ID" -H "Modal-Secret: $MODAL_PROXY_TOKEN_SECRET"'
    for line in (
        f"serving {endpoint.name} (tuned) and base on {endpoint.url}/v1",
        f"${endpoint.dollars_an_hour:.2f} an hour while its {endpoint.gpu} is up: from the first request, which waits "
        f"some minutes, until {endpoint.idle_seconds} s after the last; nothing otherwise ({endpoint.price_source})",
        "Only callers with a proxy token are let in (modal workspace proxy-tokens create):",
        "export MODAL_PROXY_TOKEN_ID=wk-... MODAL_PROXY_TOKEN_SECRET=ws-...",
        f"curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' {token} -d '{body}'",
        f"strop chat {endpoint.url} --compare",
        f"To end it: strop serve {run} --on modal --stop",
    ):
        console.note(line)


def exported(folder: Path, base: str | None) -> None:
    """After `strop export`."""
    record = "" if base else "\nIts adapter_config.json names no base: give --base, or name the base where you load it"
    out.print(f"adapter: {escape(str(folder))} (read back and checked){record}")
