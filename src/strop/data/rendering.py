"""Conversations -> text, by a model's own Jinja template as transformers renders it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jinja2 import Environment

from strop.data.dated import dated
from strop.data.examples import Conversation, Message
from strop.data.places import ANSWER, CALL, QUESTION, TOOL, Places
from strop.data.prompts import as_json
from strop.data.template_process import Chat, rejections_ignored, render
from strop.errors import DataError

PROBE = Conversation((QUESTION, ANSWER))
"""The shortest conversation."""


Part = tuple[int, bool]
"""How many of a conversation's first turns, and whether a generation prompt follows."""

_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt"}
"""What a template is given in any case."""


class Renderer:
    """A chat template, which is untrusted: a process of its own renders it, within limits.

    Args:
        tokenizer: A fast tokenizer.
        source: The Jinja template.

    Attributes:
        source: The template that is rendered; it prints one day for ever.
        places: What it has a place for.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self.source = dated(source)
        self.places = Places(lambda chat, generation_prompt: self.render([chat], generation_prompt)[0])

    def render(self, chats: Sequence[Conversation], generation_prompt: bool) -> list[str]:
        """The template's text for each conversation.

        Raises:
            DataError: The template rejects one of them, or runs over a limit; the error does not say which.
        """
        return self.render_parts([(chat, [(len(chat.messages), generation_prompt)]) for chat in chats])

    def render_parts(self, asked: Sequence[tuple[Conversation, Sequence[Part]]]) -> list[str]:
        """As `render`, for parts of conversations: all of the first, then all of the second, and so on."""
        return self._apply([(list(map(self.turn, chat.messages)), chat, parts) for chat, parts in asked])

    def turn(self, message: Message) -> dict[str, Any]:
        """A message as this template takes it."""
        turn = as_json(message)
        return _with_text(turn) if message.tool_calls and self._takes_text else turn

    @cached_property
    def _takes_text(self) -> bool:
        """Whether the arguments of a call have to be JSON text.

        Some templates fail on objects or write them as Python does; those that write JSON would quote text once more.
        """
        for spelled in (as_json(CALL), _with_text(as_json(CALL))):
            with rejections_ignored():
                text = self._one([as_json(QUESTION), spelled], PROBE)
                if "strop_probe_place" in text and "{'place'" not in text:
                    return isinstance(spelled["tool_calls"][0]["function"]["arguments"], str)
        return False

    def require_place(self, chat: Conversation) -> None:
        """Require that the template has a place for all that a conversation has besides texts.

        Raises:
            DataError: It has none; the error names what it leaves out.
        """
        self.places.require(chat)
        ignored = sorted(name for name, value in chat.template_kwargs.items() if value and name not in self._names)
        if ignored:
            raise DataError(
                f"not in the chat template: it does not read the row's chat_template_kwargs {', '.join(ignored)}; "
                "use a model or data.chat_template that does, or remove them"
            )

    def _given(self, chat: Conversation) -> dict[str, Any]:
        """What a conversation has besides turns, if the template reads it."""
        given: dict[str, Any] = {name: value for name, value in chat.template_kwargs.items() if name in self._names}
        if taken := sorted(given.keys() & _ARGUMENTS):
            raise DataError(
                f"the chat template rejects this row: {', '.join(taken)} cannot be among chat_template_kwargs; "
                "use the row's own keys"
            )
        if chat.tools:
            given["tools"] = list(map(dict, chat.tools))
        if chat.documents:
            given["documents"] = list(map(dict, chat.documents))
        return given

    @cached_property
    def _names(self) -> frozenset[str]:
        """Every name in the template's source that is no key of something and no text."""
        words = [(kind, word) for _, kind, word in Environment().lex(self.source) if kind != "whitespace"]
        before = [("", ""), *words]
        return frozenset(
            word for (_, last), (kind, word) in zip(before, words, strict=False) if kind == "name" and last != "."
        )

    def _apply(self, asked: Sequence[tuple[list[dict[str, Any]], Conversation, Sequence[Part]]]) -> list[str]:
        """Render turns, as the template takes them, with what else a conversation gives it."""
        chats = [Chat(turns, self._given(chat), parts) for turns, chat, parts in asked]
        return render(self.source, self._special_tokens, chats)

    def _one(self, turns: list[dict[str, Any]], given: Conversation) -> str:
        return self._apply([(turns, given, [(len(turns), False)])])[0]

    def _call_probe(self) -> str:
        """A question, and a call of a tool as the answer; empty if the template has no calls."""
        with rejections_ignored():
            return self._one([as_json(QUESTION), self.turn(CALL)], replace(PROBE, tools=(TOOL,)))
        return ""

    @cached_property
    def copies_calls(self) -> bool:
        """Whether it writes calls with their keys in the order that they come in, as Mistral's does."""
        turn = self.turn(CALL)
        calls = [dict(reversed(call.items())) for call in turn["tool_calls"]]
        calls = [call | {"function": dict(reversed(call["function"].items()))} for call in calls]
        asked = [as_json(QUESTION), turn | {"tool_calls": calls}]
        with rejections_ignored():
            return self._one(asked, replace(PROBE, tools=(TOOL,))) != self._call_probe()
        return False


def _with_text(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with the arguments of its calls as JSON text."""
    functions = [call["function"] for call in turn["tool_calls"]]
    written = [
        function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)} for function in functions
    ]
    calls = [call | {"function": function} for call, function in zip(turn["tool_calls"], written, strict=True)]
    return turn | {"tool_calls": calls}
