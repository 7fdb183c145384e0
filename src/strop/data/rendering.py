"""Conversations -> text, by a model's own Jinja template as transformers renders it."""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import Environment

from strop.data.dated import dated
from strop.data.examples import Conversation, Message
from strop.data.places import ANSWER, CALL, QUESTION, TOOL, Places
from strop.data.prompts import as_json
from strop.data.trial import try_in_child
from strop.errors import DataError

PROBE = Conversation((QUESTION, ANSWER))
"""The shortest conversation."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation's first turns, to be rendered."""

    chat: Conversation
    num_turns: int
    generation_prompt: bool


class Renderer:
    """A chat template, tried once in a child process before it runs in this one.

    Args:
        tokenizer: A fast tokenizer.
        source: The Jinja template. It is untrusted: transformers renders it in its sandbox.

    Attributes:
        source: The template that is rendered; it prints one day for ever.
        places: What it has a place for.

    Raises:
        ModelError: The template does not finish, or takes too much memory.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = dated(source)
        self.places = Places(lambda chat, generation_prompt: self.render([chat], generation_prompt)[0])
        try_in_child(self.source, dict(tokenizer.special_tokens_map))

    def render(self, chats: Sequence[Conversation], generation_prompt: bool) -> list[str]:
        """The template's text for each conversation.

        Raises:
            DataError: The template rejects one of them; the error does not say which.
        """
        return self.render_asked([Asked(chat, len(chat.messages), generation_prompt) for chat in chats])

    def render_asked(self, asked: Sequence[Asked]) -> list[str]:
        """As `render`, with one call of the template for all that give it the same besides their turns."""
        texts = [""] * len(asked)
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, one in enumerate(asked):
            groups[_given(one.chat), one.generation_prompt].append(i)
        for (_, generation_prompt), members in groups.items():
            first = asked[members[0]].chat
            chats = [[self.turn(m) for m in asked[i].chat.messages[: asked[i].num_turns]] for i in members]
            for i, text in zip(members, self._apply(chats, first, generation_prompt), strict=True):
                texts[i] = text
        return texts

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
            with suppress(DataError):
                [text] = self._apply([[as_json(QUESTION), spelled]], PROBE, False)
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

    def _values(self, chat: Conversation) -> dict[str, Any]:
        """Those of a row's values that the template reads."""
        return {name: value for name, value in chat.template_kwargs.items() if name in self._names}

    @cached_property
    def _names(self) -> frozenset[str]:
        """Every name in the template's source that is no key of something and no text."""
        words = [(kind, word) for _, kind, word in Environment().lex(self.source) if kind != "whitespace"]
        before = [("", ""), *words]
        return frozenset(
            word for (_, last), (kind, word) in zip(before, words, strict=False) if kind == "name" and last != "."
        )

    def _apply(self, chats: list[list[dict[str, Any]]], given: Conversation, generation_prompt: bool) -> list[str]:
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                chats,
                tools=list(map(dict, given.tools)) or None,
                documents=list(map(dict, given.documents)) or None,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._values(given),
            )
        except Exception as error:  # a template may raise anything
            raise DataError(f"the chat template rejects this row: {error}") from error
        return texts

    @cached_property
    def call_probe(self) -> str:
        """A question, and a call of a tool as the answer; empty if the template has no calls."""
        with suppress(DataError):
            return self._apply([[as_json(QUESTION), self.turn(CALL)]], replace(PROBE, tools=(TOOL,)), False)[0]
        return ""

    @cached_property
    def copies_calls(self) -> bool:
        """Whether it writes calls with their keys in the order that they come in, as Mistral's does."""
        turn = self.turn(CALL)
        calls = [dict(reversed(call.items())) for call in turn["tool_calls"]]
        calls = [call | {"function": dict(reversed(call["function"].items()))} for call in calls]
        asked = [as_json(QUESTION), turn | {"tool_calls": calls}]
        with suppress(DataError):
            return self._apply([asked], replace(PROBE, tools=(TOOL,)), False)[0] != self.call_probe
        return False


def _with_text(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with the arguments of its calls as JSON text."""
    functions = [call["function"] for call in turn["tool_calls"]]
    written = [
        function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)} for function in functions
    ]
    calls = [call | {"function": function} for call, function in zip(turn["tool_calls"], written, strict=True)]
    return turn | {"tool_calls": calls}


def _given(chat: Conversation) -> str:
    given = (chat.tools, chat.documents, chat.template_kwargs)
    return json.dumps(given) if any(given) else ""
