"""`strop chat`: questions to the tuned model, of a run folder or of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from strop.commands.arguments import as_run, require_number
from strop.commands.card import parts_of
from strop.commands.console import Printing, aside, out
from strop.commands.load import load_tuned
from strop.commands.run import Run
from strop.data.examples import Conversation, Example, Message, Text, Tokens
from strop.data.prompts import as_text
from strop.data.rows.calls import read_tools
from strop.data.sources import held_out_examples
from strop.errors import RecipeError
from strop.resolve import read_ordinary
from strop.serving.client import EndpointSession, connect, is_url

if TYPE_CHECKING:
    from strop.evaluation.generate import ChatSession

_MOST_TOOLS = 1 << 20
"""Bytes that are read of a list of tools: more than any prompt holds."""


def chat(run: Run | str | Path, *, max_new_tokens: int = 256, temperature: float = 0.0) -> ChatSession:
    """Talk to the tuned model, in the template it was trained on.

    Args:
        run: A finished run, or its folder.
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.

    Raises:
        RecipeError: The run is not finished, or an option is not possible.
    """
    require_number("max_new_tokens", max_new_tokens, 1)
    require_number("temperature", temperature, 0, whole=False)
    run = as_run(run)
    run.require_adapter()  # before torch is loaded

    from strop.evaluation.generate import ChatSession

    tuned = load_tuned(run, aside)
    return ChatSession(tuned.adapter, tuned.template, max_new_tokens, temperature)


@dataclass(frozen=True)
class _Frame:
    """What goes with each question.

    Attributes:
        system: A system message.
        tools: Functions that the model may call.
    """

    system: str | None
    tools: tuple[Mapping[str, Any], ...]

    def around(self, question: str) -> str | Conversation:
        """The question with it."""
        if self.system is None and not self.tools:
            return question
        first = () if self.system is None else (Message("system", self.system),)
        return Conversation((*first, Message("user", question)), self.tools)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN|URL", help="A run folder, or an endpoint of `strop serve`.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and exit.")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Ask a held-out row: all that comes before its last answer.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System message of each question; without it, training's default if any.")
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="JSON list of the functions that the model may call."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model too.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Talk to the tuned model of a run folder or an endpoint, in the template it was trained on.

    An endpoint's key is taken from STROP_API_KEY, Modal's proxy token from MODAL_PROXY_TOKEN_ID and
    MODAL_PROXY_TOKEN_SECRET.
    """
    frame = _Frame(system, _read_tools(tools) if tools else ())
    row = None
    if example:
        if prompt or system or tools or is_url(run):
            raise RecipeError("--example asks a row of a run folder as it is, without --prompt, --system and --tools")
        row = _held_out_row(Run(Path(run)))
    if is_url(run):
        session: ChatSession | EndpointSession = connect(run, max_new_tokens, temperature)
    else:
        with Printing().waiting("loading the model"):
            session = chat(Run(Path(run)), max_new_tokens=max_new_tokens, temperature=temperature)
        if not row and not tools and "tools" in parts_of(Run(Path(run))):
            aside("its rows declare tools: give yours with --tools FILE, or ask a held-out row with --example")
    if row:
        _print_row(row, Run(Path(run)))
        _answer(session, row, compare)
    elif prompt is None:
        _converse(session, frame, compare)
    else:
        _answer(session, frame.around(prompt), compare)


def _read_tools(path: Path) -> tuple[Mapping[str, Any], ...]:
    unused: set[str] = set()
    try:
        tools = read_tools({"tools": json.loads(read_ordinary(path, _MOST_TOOLS))}, unused)
    except (OSError, ValueError, RecursionError) as error:  # a RowError is a ValueError
        raise RecipeError(f"--tools {path}: {error}") from error
    if unused or not tools:
        raise RecipeError(f"--tools {path}: {', '.join(sorted(unused)) or 'it names no function'}")
    return tools


def _held_out_row(run: Run) -> Example:
    """The run's first held-out row."""
    from strop.data.build import falls_into
    from strop.data.store import Split

    data, percentage = run.recipe.data, run.recipe.data.validation_split_percentage
    if not data.validation_file and not percentage:
        raise RecipeError("this run holds out no rows to take a question from; use --prompt")
    split = None if data.validation_file else Split("validation", percentage, run.recipe.train.seed)
    for origin, example in held_out_examples(data):
        if split and not falls_into(split, example):
            continue
        if isinstance(example, Text | Tokens):
            raise RecipeError(f"{origin} asks nothing: it is a document; use --prompt")
        return example
    raise RecipeError("no held-out row can be read; use --prompt")


def _print_row(row: Example, run: Run) -> None:
    """The question of a row, and what else of the row is asked with it."""
    out.print(f"[bold]question[/bold]  {escape(as_text(run.template, row))}")
    if isinstance(row, Conversation):
        before = [message.role for message in row.messages[:-1]]
        counts = {
            "system message": before.count("system"),
            "more turn": len(before) - before.count("system") - 1,
            "tool": len(row.tools),
            "document": len(row.documents),
        }
        if others := [f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n > 0]:
            out.print(f"[dim]asked as in its row, with {', '.join(others)}[/dim]")


def _answer(session: ChatSession | EndpointSession, question: Any, compare: bool) -> None:
    """Stream the answer to one question, the base model's first if asked for."""
    for label, tuned in (("base", False), ("tuned", True)) if compare else (("", True),):
        if label:
            out.print(f"[bold]{label}[/bold]  ", end="")
        for piece in session.stream(question, tuned):
            out.print(piece, end="", markup=False, soft_wrap=True)
        out.print()


def _converse(session: ChatSession | EndpointSession, frame: _Frame, compare: bool) -> None:
    """Questions from the keyboard until an empty line or the end of input."""
    out.print("[dim]Each question is answered on its own. An empty line ends the chat.[/dim]")
    while True:
        try:
            prompt = out.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            return
        if not prompt.strip():
            return
        _answer(session, frame.around(prompt), compare)
