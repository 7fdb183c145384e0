"""How a chat template writes an answer's reasoning, content and calls of tools, learned from the template itself.

It renders answers whose parts are marks; what stands around the marks is the markup. So nothing here knows a family.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from strop.data.examples import Conversation, Message, ToolCall
from strop.data.template import Template
from strop.errors import DataError

_REASONING, _CONTENT = "stropreasoning", "stropcontent"
_MARKS = re.compile(r"(stropreasoning|stropcontent|strop_tool_\d\d|\{[^{}]*stropvalue\d\d[^{}]*\}|strop00\d\d\b)")
_SLOTS = {"stropr": "reasoning", "stropc": "content", "strop_": "name", "strop0": "id"}
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Form:
    """Literal texts and the slots between them: literals[0], slots[0], literals[1], ..., and a literal at the end."""

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    def read(self, text: str) -> Message | None:
        """The slots of a text of this form, as a message; None if the text is of another."""
        at, found = 0, list[tuple[str, Any]]()
        for number, slot in enumerate(self.slots):
            begin = pattern(self.literals[number]).match(text, at)
            end = begin and self._end(number, text, begin.end())
            if end is None:
                return None
            value, at = end
            found.append((slot, value))
        tail = pattern(self.literals[-1]).match(text, at)
        return _message(found) if tail and not text[tail.end() :].strip() else None

    def _end(self, number: int, text: str, at: int) -> tuple[Any, int] | None:
        """A slot's value and where it ends."""
        if self.slots[number] == "arguments":
            return _object_at(text, at)
        if self.literals[number + 1].strip():
            end = searcher(self.literals[number + 1]).search(text, at)
            return (text[at : end.start()], end.start()) if end else None
        return (text[at:], len(text)) if number + 1 == len(self.slots) else None

    def before_name(self) -> str:
        """What comes before the name of the first call."""
        return self.literals[self.slots.index("name")]

    def after_name(self) -> str:
        """What comes between a call's name and what follows it."""
        return self.literals[self.slots.index("name") + 1]


class Markup:
    """The markup of one chat template; under a template that is not the model's own, every answer is content.

    Args:
        template: Of the run.
        template_kwargs: What a conversation gives to its chat template, such as enable_thinking.

    Attributes:
        opening: What opens the reasoning, empty if the prompt has done so; None if the template has no reasoning.
        plain: What comes before the content of an answer without reasoning.
        closing: What stands between reasoning and content.
        call: What begins a call where content could begin, up to its name; empty if the template writes no calls.
        decode: Token ids -> text; with special tokens written out if the markup has any.
    """

    def __init__(self, template: Template, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self._chat, self._kwargs = template.chat, dict(template_kwargs or {})
        self._stops = [str(token) for token in template.tokenizer.convert_ids_to_tokens(sorted(template.stop_ids))]
        self.form = cache(self._form)
        said, reasoned, called = (self.form(*parts) for parts in ((0, 1, 0), (1, 1, 0), (0, 0, 1)))
        self.plain = said.literals[0] if said else ""
        self.opening: str | None = None
        self.closing = ""
        if reasoned and reasoned.literals[1].strip():
            self.opening, self.closing = reasoned.literals[:2]
        self.call = _without_common(called.before_name(), self.plain) if called else ""
        tokens = template.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        self._special = re.compile("|".join(re.escape(token.content) for token in tokens if token.special) or "(?!)")
        literals = [text for form in (said, reasoned, called) if form for text in form.literals]
        self._spells_special = self._special.search(" ".join(literals)) is not None
        self.decode = template.decode_all if self._spells_special else template.decode

    @cached_property
    def call_after_reasoning(self) -> str:
        """What stands between reasoning and a call, if that is not how content begins too; else empty."""
        form = self.form(1, 0, 1) if self.opening is not None else None
        between = form.before_name() if form else ""
        return "" if squeezed(between).startswith(squeezed(self.closing)) else between

    @cached_property
    def calls_after_content(self) -> tuple[str, ...]:
        """What may stand between content and a call in the same turn."""
        forms = (self.form(0, 1, 1), self.form(1, 1, 1))
        return tuple(dict.fromkeys(form.before_name() for form in forms if form and form.before_name().strip()))

    def plain_text(self, text: str) -> str:
        """A part of an answer as `Template.decode` gives it: without special tokens."""
        return self._special.sub("", text) if self._spells_special else text

    def writes(self, chat: Conversation, message: Message, text: str) -> bool:
        """Whether the template writes this text, whitespace aside, for a message that answers a conversation."""
        context = (replace(turn, learned=False) for turn in chat.messages)
        whole, wanted = squeezed(self._answer(replace(chat, messages=(*context, message)))), squeezed(text)
        rest = whole.removeprefix(wanted)
        return whole.startswith(wanted) and (not rest or rest.startswith(tuple(map(squeezed, self._stops))))

    def _form(self, num_reasoning: int, num_content: int, num_calls: int) -> Form | None:
        """The form of an answer with these parts; None if the template has no place for them."""
        calls = tuple(map(_call, range(num_calls)))
        message = Message("assistant", _CONTENT * num_content, _REASONING * num_reasoning, calls)
        tools = tuple(_tool(call.name) for call in calls)
        turns = (Message("user", "question"), message)
        written = self._answer(Conversation(turns, tools, template_kwargs=self._kwargs))
        end = min((at for stop in self._stops if (at := written.find(stop)) >= 0), default=len(written))
        literals = _MARKS.split(written[:end])
        marks = literals[1::2]
        slots = tuple("arguments" if mark[0] == "{" else _SLOTS[mark[:6]] for mark in marks)
        parts = num_reasoning + num_content + 2 * num_calls
        whole = len(set(marks)) == len(marks) and len(slots) - slots.count("id") == parts
        return Form(tuple(literals[::2]), slots) if whole and written else None

    def _answer(self, chat: Conversation) -> str:
        """What the template writes for the last turn of a conversation; empty if it rejects it."""
        if self._chat is None:
            return ""
        try:
            [samples] = self._chat.split([chat])
        except DataError:
            return ""
        return samples[-1].segments[-1][0]


@cache
def pattern(literal: str) -> re.Pattern[str]:
    """Matches a literal text, whitespace aside; behind it, whitespace is the literal's only if it ends with some."""
    return re.compile(r"\s*" * bool(literal.strip()) + _spaced(literal))


@cache
def searcher(literal: str) -> re.Pattern[str]:
    """`pattern`, to be searched for: a search would try `\\s*` at each place of a long gap, for the length of the gap.

    40,000 blanks took 2.8 s, in which no other thread of Python ran.
    """
    return re.compile(r"(?:(?<!\s)\s+)?" * bool(literal.strip()) + _spaced(literal))


def _spaced(literal: str) -> str:
    return r"\s*".join(map(re.escape, _TOKEN.findall(literal))) + r"\s*" * literal[-1:].isspace()


def squeezed(text: str) -> str:
    """A text without whitespace."""
    return "".join(text.split())


def _without_common(text: str, other: str) -> str:
    """A text without the beginning that it shares with another."""
    words, others = _TOKEN.findall(text), _TOKEN.findall(other)
    pairs = enumerate(zip(words, others, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(words), len(others)))
    return " ".join(words[same:])


def _object_at(text: str, at: int) -> tuple[dict[str, Any], int] | None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value, end = json.JSONDecoder(parse_constant=refuse).raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def _message(found: list[tuple[str, Any]]) -> Message:
    values: dict[str, list[Any]] = {}
    for slot, value in found:
        values.setdefault(slot, []).append(value)
    names, arguments = values.get("name", []), values.get("arguments", [])
    ids = values.get("id") or [uuid.uuid4().hex[:9] for _ in names]  # as long as Mistral's, see `_call`
    calls = tuple(ToolCall(*call) for call in zip(names, arguments, ids, strict=True))
    return Message("assistant", values.get("content", [""])[0], values.get("reasoning", [""])[0], calls)


def _call(number: int) -> ToolCall:
    # Mistral's templates take ids of nine letters and digits only.
    return ToolCall(f"strop_tool_{number:02}", {"strop_key": f"stropvalue{number:02}"}, f"strop00{number:02}")


def _tool(name: str) -> Mapping[str, Any]:
    parameters = {"type": "object", "properties": {"strop_key": {"type": "string", "description": "A key."}}}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}
