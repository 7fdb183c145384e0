"""What the commands after a run print."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from strop.present import console
from strop.present.console import out

if TYPE_CHECKING:  # these import torch, which a message does not need
    from collections.abc import Sequence

    from strop.api.exporting import Exported
    from strop.evaluation.intervals import Interval
    from strop.evaluation.score import AnswerPair, Evaluation, JudgedAnswer
    from strop.evaluation.session import ChatSession
    from strop.modal_runs.serving import Deployed
    from strop.reporting.serve import PageServer
    from strop.serving.client import EndpointSession

    Session = ChatSession | EndpointSession


_METRICS = {  # label, format of a value, of an interval's ends, and is more better?
    "nll": ("loss, nats a token", "{:.4f}", "{:.3f}", False),
    "perplexity": ("perplexity", "{:.3f}", "{:.3f}", False),
    "exact_match": ("exact match", "{:.1%}", "{:.0%}", True),
    "numeric_match": ("numbers match", "{:.1%}", "{:.0%}", True),
    "token_f1": ("token F1", "{:.3f}", "{:.3f}", True),
    "stopped": ("stopped by itself", "{:.1%}", "{:.0%}", True),
}
_GROUPS_SHOWN = 20


def evaluation(result: Evaluation, num_examples: int) -> None:
    """Base beside tuned with their intervals, in all and by group, and some answers of both, wrong ones first."""
    answered = f", {result.num_generated} of them answered" if result.num_generated else ""
    title = f"{result.num_rows} held-out rows{answered}"
    table = Table("", title=title, title_justify="left", show_lines=True)
    for heading in ("base", "tuned", "tuned - base"):
        table.add_column(heading, justify="right")
    for metric in _METRICS:
        if any(scores[metric] for scores in (result.base, result.tuned)):
            label, *_ = _METRICS[metric]
            if metric == "numeric_match" and result.settings.numeric_tolerance:
                label += f" (within {result.settings.numeric_tolerance:.3g} of each)"
            difference = result.difference[metric]
            table.add_row(
                label,
                _cell(metric, result.base[metric]),
                _cell(metric, result.tuned[metric]),
                _cell(metric, difference, sign=True),
            )
    out.print(table)
    out.print("[dim]Second lines: 95% intervals. A difference whose interval holds 0 may be chance.[/dim]")
    if result.groups:
        _groups(result)
    for example in _telling(result.examples, num_examples):
        _example(example)


def answers_written(path: Path, result: Evaluation) -> None:
    """Where every answer is."""
    out.print(f"\n{len(result.examples)} answers of each model: {escape(str(path))}")


def _cell(metric: str, interval: Interval | None, sign: bool = False) -> str:
    if interval is None:
        return "-"
    _, form, ends, more_is_better = _METRICS[metric]
    if sign:
        form, ends = form.replace(":", ":+"), ends.replace(":", ":+")
    text = f"{form.format(interval.value)}\n[dim]{ends.format(interval.low)} to {ends.format(interval.high)}[/dim]"
    if sign and (interval.low > 0 or interval.high < 0):
        return f"[{'green' if (interval.low > 0) == more_is_better else 'red'}]{text}[/]"
    return text


def _groups(result: Evaluation) -> None:
    """The largest groups; all of them are in evaluation.json."""
    shown = [m for m in ("nll", "exact_match", "numeric_match", "token_f1") if result.tuned[m] is not None][:3]
    table = Table("group", "rows", "", title="by group", title_justify="left")
    for metric in shown:
        table.add_column(_METRICS[metric][0], justify="right")
    ordered = sorted(result.groups.items(), key=lambda item: -item[1].num_rows)
    for name, group in ordered[:_GROUPS_SHOWN]:
        table.add_row(_label(name), str(group.num_rows), "base", *(_cell(m, group.base[m]) for m in shown))
        table.add_row("", "", "tuned", *(_cell(m, group.tuned[m]) for m in shown), end_section=True)
    out.print(table)
    if len(ordered) > _GROUPS_SHOWN:
        out.print(f"[dim]and {len(ordered) - _GROUPS_SHOWN} smaller groups, in evaluation.json[/dim]")


def _label(group: str) -> str:
    """A group's name on one short line."""
    return escape(shorten(group, 24, placeholder="…"))


def _telling(examples: Sequence[AnswerPair], count: int) -> list[AnswerPair]:
    """As many that the tuned model got wrong as right, wrong ones first; more of either where the other lacks."""
    right = [example for example in examples if example.tuned.exact_match]
    wrong = [example for example in examples if not example.tuned.exact_match]
    num_wrong = min(len(wrong), max((count + 1) // 2, count - len(right)))
    return wrong[:num_wrong] + right[: count - num_wrong]


def _verdict(answer: JudgedAnswer) -> tuple[str, str]:
    """How right an answer is, and the colour of that."""
    if answer.exact_match:
        return "exact", "green"
    if answer.numeric_match:
        return f"numbers right, F1 {answer.token_f1:.2f}", "yellow"
    return f"{'wrong' if answer.numeric_match is None else 'wrong numbers'}, F1 {answer.token_f1:.2f}", "red"


def _example(example: AnswerPair) -> None:
    group = f"  ({_label(example.group)})" if example.group else ""
    out.print(f"\n[dim]{escape(example.row)}{group}[/dim]\n{escape(example.question)}")
    out.print(f"[dim]reference[/dim]  {escape(example.reference)}")
    for label, answer in (("base", example.base), ("tuned", example.tuned)):
        verdict, style = _verdict(answer)
        out.print(f"[{style}]{label:>9}[/{style}]  {escape(answer.text)}  [{style}]({verdict})[/{style}]")


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


def exported(result: Exported, base: str | None) -> None:
    """After `strop export`: where it is, and how near to the trained model its consumer finds it."""
    if result.parity is None:
        record = (
            "" if base else "\nIts adapter_config.json names no base: give --base, or name the base where you load it"
        )
        out.print(f"adapter: {escape(str(result.folder))} (read back and checked){record}")
        return
    parity = result.parity
    table = Table("", "measured", "limit", title=f"parity: {parity.kind} in {parity.consumer}", title_justify="left")
    table.add_row("same prompt ids", f"{parity.same_prompts} of {parity.num_prompts}", "all")
    table.add_row("stops at", ", ".join(map(str, parity.stop_ids)), "all")
    parting = f"; parted by {parity.widest_parting:.2g} nats" if parity.same_answers < parity.num_prompts else ""
    table.add_row(
        "same greedy answers", f"{parity.same_answers} of {parity.num_prompts}{parting}", f"{parity.limits.tie:g} nats"
    )
    table.add_row("KL divergence, nats", f"{parity.distance.kl:.2g}", f"{parity.limits.kl:g}")
    table.add_row("same likeliest token", f"{parity.distance.top1:.1%}", f"{parity.limits.top1:.0%}")
    table.add_row("error of the logits", f"{parity.distance.logits:.2g}", f"{parity.limits.logits:g}")
    out.print(table)
    out.print(f"{parity.kind}: {escape(str(result.folder))}")


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


def reported(path: Path) -> None:
    """Where a run's page is."""
    out.print(f"wrote {path}", markup=False, soft_wrap=True)


def served(server: PageServer) -> None:
    """Say where the page is and serve it until Ctrl-C."""
    out.print(f"{server.url}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
