"""Samples as the model sees them: what is learned, and what of it is reasoning or has to do with tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.text import Text

if TYPE_CHECKING:
    from strop.data.audit import PreviewRow

Kind = Literal["text", "reasoning", "tools"]
_MARKED: dict[Kind, re.Pattern[str]] = {
    "reasoning": re.compile(
        r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)"
        r"|<\|channel\|>analysis<\|message\|>.*?(?:<\|end\|>|\Z)",
        re.DOTALL,
    ),
    "tools": re.compile(
        r"<(tools?|tool_calls?|tool_response|function_calls?|available_tools)>.*?(?:</\1>|\Z)"
        r"|\[(AVAILABLE_TOOLS)\].*?(?:\[/\2\]|\Z)|\[TOOL_CALLS\].*?(?=</s>|\[/?INST\]|\Z)"
        r"|\[(TOOL_RESULTS)\].*?(?:\[/\3\]|\Z)"
        r"|<\|python_tag\|>.*?(?=<\|e(?:ot|om)_id\|>|\Z)|<function=.*?(?:</function>|\Z)"
        r"|<\|tool_calls?_begin\|>.*?(?:<\|tool_calls?_end\|>|\Z)",
        re.DOTALL,
    ),
}
"""How chat templates mark reasoning, declarations of tools, calls and their results."""
_STYLES: dict[Kind, tuple[str, str]] = {
    "text": ("bold green", "dim"),
    "reasoning": ("italic cyan", "dim cyan"),
    "tools": ("bold magenta", "dim magenta"),
}
"""Of what is learned, and of what is only read."""


def render_samples(rows: Sequence[PreviewRow], has_colour: bool) -> Iterator[Text]:
    """A legend, and each sample with its learned tokens in colour; in brackets where there is no colour."""
    if not rows:
        return
    yield _legend({kind for row in rows for kind in _kinds(_texts(row))}, has_colour)
    yield from (_sample(row, has_colour) for row in rows)


def _legend(kinds: set[Kind], has_colour: bool) -> Text:
    if not has_colour:
        return Text("\nlearned tokens are in [brackets]")
    text = Text("\n").append("learned", _STYLES["text"][0])
    if "reasoning" in kinds:
        text.append(", ").append("learned reasoning", _STYLES["reasoning"][0])
    if "tools" in kinds:
        text.append(", ").append("learned calls of tools", _STYLES["tools"][0])
        text.append(", ").append("other text of tools", _STYLES["tools"][1])
    return text.append(", ").append("read, but not learned", "dim")


def _sample(row: PreviewRow, has_colour: bool) -> Text:
    text = Text(f"\n{row.origin}\n", style="dim")
    inside = False
    texts = _texts(row)
    for shown, learned, kind in zip(texts, row.learned, _kinds(texts), strict=True):
        if not has_colour and learned != inside:
            text.append("[" if learned else "]")
        inside = learned
        text.append(shown, style=_STYLES[kind][not learned])
    return text.append("]" if not has_colour and inside else "")


def _texts(row: PreviewRow) -> list[str]:
    return [token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n") for token in row.tokens]


def _kinds(texts: Sequence[str]) -> list[Kind]:
    """What each token belongs to, by the marks in the whole text."""
    whole = "".join(texts)
    spans = [(m.start(), m.end(), kind) for kind, marked in _MARKED.items() for m in marked.finditer(whole)]
    kinds: list[Kind] = []
    at = 0
    for text in texts:
        end = at + len(text)
        kinds.append(next((kind for start, stop, kind in spans if start < end and at < stop), "text"))
        at = end
    return kinds
