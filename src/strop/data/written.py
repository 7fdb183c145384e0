"""Whether a chat template wrote everything that a row says, so that nothing is lost in silence."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from strop.data.examples import Conversation, Message
from strop.errors import DataError

_THINK = re.compile(r"</?think>")


def require_written(chat: Conversation, text: str, num_turns: int, learned: Collection[int]) -> None:
    """Require that a text holds the first turns of a conversation, each in its place, the tools and the documents.

    Of answers that are only context, reasoning may be missing: templates drop it once another turn follows.

    Args:
        chat: The conversation.
        text: What the template made of its turns.
        num_turns: How many of them.
        learned: Indices of the answers that are learned from this text.

    Raises:
        DataError: Something is missing; the error names it.
    """
    at = 0
    for number, message in enumerate(chat.messages[:num_turns], 1):
        for piece in _contents(message, number - 1 in learned):
            found = _find(piece, text, 0 if message.role == "system" else at)
            if found is None:
                raise DataError(
                    f"not in the chat template: it leaves out the {_what(message)} of turn {number}"
                    f" ({piece[:40]!r}); remove it, or use a model or data.chat_template that has a place for it"
                )
            at = at if message.role == "system" else found
        for what, piece in _extras(message, number - 1 in learned):
            if _find(piece, text, 0) is None:
                raise DataError(
                    f"not in the chat template: it leaves out the {what} of turn {number} ({piece[:40]!r}); "
                    "use a model or data.chat_template that has a place for it, or set the row apart"
                )
    for document in chat.documents:
        for piece in _texts(document.get("text") or document.get("content") or document):
            if _find(piece.strip(), text, 0) is None:
                raise DataError(f"not in the chat template: it leaves out a document ({piece[:40]!r})")
    for tool in chat.tools:
        if _find(name := tool["function"]["name"], text, 0) is None:
            raise DataError(
                f"not in the chat template: it does not tell the model of the row's tools ({name!r}); "
                "use a model or data.chat_template that does"
            )


def _contents(message: Message, is_learned: bool) -> list[str]:
    """The parts of a turn's text that must be there, as templates may trim them; inline reasoning by itself."""
    pieces = [piece.strip() for piece in _THINK.split(message.content)] if message.content else []
    if message.role == "assistant" and not is_learned:
        pieces = pieces[-1:]
    return [piece for piece in pieces if piece]


def _extras(message: Message, is_learned: bool) -> Iterator[tuple[str, str]]:
    if message.reasoning and is_learned:
        yield "reasoning", message.reasoning.strip()
    for call in message.tool_calls:
        yield "tool call", call.name
        yield from (("arguments of a tool call", text) for text in _texts(call.arguments))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a tree of values."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _find(piece: str, text: str, start: int) -> int | None:
    """Where a piece ends in a text, as it is or as JSON writes it; None if it is not there."""
    if piece.isascii() and piece.isprintable() and not ('"' in piece or "\\" in piece):  # JSON writes it as it is
        at = text.find(piece, start)
        return None if at < 0 else at + len(piece)
    spellings = (piece, json.dumps(piece, ensure_ascii=False)[1:-1], json.dumps(piece)[1:-1])
    found = ((text.find(written, start), len(written)) for written in spellings)
    return min((at + length for at, length in found if at >= 0), default=None)


def _what(message: Message) -> str:
    return {"system": "system message", "user": "question", "assistant": "answer", "tool": "tool result"}[message.role]
