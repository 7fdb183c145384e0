"""`strop chat`: questions to the tuned model, of a run folder or of an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from strop.commands.console import out
from strop.commands.load import load_tuned
from strop.commands.run import Run
from strop.data.prompts import question_of
from strop.data.sources import held_out_examples
from strop.errors import RecipeError
from strop.serving.client import EndpointSession, connect, is_url

if TYPE_CHECKING:
    from strop.evaluation.generate import ChatSession


def chat(run: Run, *, max_new_tokens: int = 256, temperature: float = 0.0) -> ChatSession:
    """Talk to the tuned model, in the template it was trained on.

    Args:
        run: A finished run.
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.

    Raises:
        RecipeError: The run is not finished.
    """
    from strop.evaluation.generate import ChatSession

    tuned = load_tuned(run)
    return ChatSession(tuned.adapter, tuned.template, max_new_tokens, temperature)


def command(
    run: Annotated[str, typer.Argument(metavar="RUN|URL", help="A run folder, or an endpoint of `strop serve`.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and exit.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Ask a question from the held-out rows.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model too.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Talk to the tuned model of a run folder or an endpoint, in the template it was trained on.

    An endpoint's key is taken from STROP_API_KEY, Modal's proxy token from MODAL_PROXY_TOKEN_ID and
    MODAL_PROXY_TOKEN_SECRET.
    """
    if example:
        prompt = _held_out_question(Run(Path(run)))
    if is_url(run):
        session: ChatSession | EndpointSession = connect(run, max_new_tokens, temperature)
    else:
        session = chat(Run(Path(run)), max_new_tokens=max_new_tokens, temperature=temperature)
    if prompt is None:
        _converse(session, compare)
    else:
        _answer(session, prompt, compare, show_prompt=example)


def _held_out_question(run: Run) -> str:
    """The question of the run's first held-out row."""
    if not run.recipe.data.validation_file:
        raise RecipeError("this run has no data.validation_file to take a question from; use --prompt")
    for _, example in held_out_examples(run.recipe.data):
        return question_of(example)
    raise RecipeError("no held-out row can be read; use --prompt")


def _answer(session: ChatSession | EndpointSession, prompt: str, compare: bool, show_prompt: bool = False) -> None:
    """Stream the answer to one prompt, the base model's first if asked for."""
    if show_prompt:
        out.print(f"[bold]question[/bold]  {escape(prompt)}")
    for label, tuned in (("base", False), ("tuned", True)) if compare else (("", True),):
        if label:
            out.print(f"[bold]{label}[/bold]  ", end="")
        for piece in session.stream(prompt, tuned):
            out.print(piece, end="", markup=False, soft_wrap=True)
        out.print()


def _converse(session: ChatSession | EndpointSession, compare: bool) -> None:
    """Questions from the keyboard until an empty line or the end of input."""
    out.print("[dim]Each question is answered on its own. An empty line ends the chat.[/dim]")
    while True:
        try:
            prompt = out.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            return
        if not prompt.strip():
            return
        _answer(session, prompt, compare)
