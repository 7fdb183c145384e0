"""What a chat template has a place for, found by rendering short conversations: what it drops, it drops in silence."""

from collections.abc import Callable, Iterator
from functools import cache

from strop.data.examples import Conversation, Message, ToolCall
from strop.data.template_process import rejections_ignored
from strop.errors import DataError

Render = Callable[[Conversation, bool], str]
"""The template's text for a conversation, with a generation prompt or without."""

QUESTION = Message("user", "user text")
ANSWER = Message("assistant", "assistant text")
TOOL = {
    "type": "function",
    "function": {
        "name": "strop_probe_tool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_CALLS = tuple(
    ToolCall("strop_probe_tool", {"place": place}, f"call0000{n}")
    for n, place in enumerate(("strop_probe_place", "strop_probe_home"))
)
CALL = Message("assistant", "", tool_calls=_CALLS[:1])
DOCUMENT = {"title": "strop probe title", "text": "strop probe text"}
_SYSTEM = Message("system", "strop_probe_rule")
_RESULT = Message("tool", "strop_probe_result", name="strop_probe_tool", tool_call_id="call00000")
_THOUGHT = "strop_probe_thought"
_FOUR = (QUESTION, ANSWER, Message("user", "more user text"), Message("assistant", "more assistant text"))

# Kinds of things: conversations, and what the text of one of them has to hold, in this order.
_PROBES: dict[str, tuple[list[tuple[Message, ...]], tuple[str, ...]]] = {
    "system message": ([(_SYSTEM, QUESTION)], ("strop_probe_rule", "user text")),
    "system message between turns": (
        [(*_FOUR[:2], _SYSTEM, *_FOUR[2:])],
        ("assistant text", "strop_probe_rule", "more"),
    ),
    "tool call": ([(QUESTION, CALL)], ("strop_probe_place",)),
    "second tool call": ([(QUESTION, Message("assistant", "", tool_calls=_CALLS))], ("strop_probe_home",)),
    "answer beside a tool call": (
        [(QUESTION, Message("assistant", "assistant text", tool_calls=_CALLS[:1]))],
        ("assistant text",),
    ),
    "reasoning": ([(QUESTION, Message("assistant", "assistant text", _THOUGHT))], (_THOUGHT,)),
    "reasoning before a tool call": ([(QUESTION, Message("assistant", "", _THOUGHT, _CALLS[:1]))], (_THOUGHT,)),
    "tool result": (
        [(QUESTION, CALL, _RESULT, ANSWER), (QUESTION, ANSWER, _RESULT, ANSWER), (QUESTION, CALL, _RESULT)],
        ("strop_probe_result",),
    ),
}


class Places:
    """What one chat template writes.

    Args:
        render: The template.

    Attributes:
        has: Whether it writes a kind of thing, such as `tools`, for rows with tools or without.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self.has = cache(self._find)

    def require(self, chat: Conversation) -> None:
        """Require that the template has a place for all kinds of things that a conversation has.

        Raises:
            DataError: It has none for the tools, the documents, a call and the like; the error names it.
        """
        for what, values in (("tools", chat.tools), ("documents", chat.documents)):
            if values and not self.has(what, bool(chat.tools)):
                raise DataError(
                    f"not in the chat template: it does not tell the model of the row's {what}; "
                    "use a model or data.chat_template that does, or remove them"
                )
        is_begun = False
        for number, message in enumerate(chat.messages, 1):
            is_begun |= message.role != "system"
            for what, piece in _kinds(message, is_begun):
                if not self.has(what, bool(chat.tools)):
                    raise DataError(
                        f"not in the chat template: it leaves out the {what} of turn {number} ({piece[:40]!r}); "
                        "use a model or data.chat_template that has a place for it, or set the row apart"
                    )

    def _find(self, what: str, has_tools: bool) -> bool:
        """Whether the template writes a kind of thing; rows with tools may have another template than others."""
        if what in ("tools", "documents"):
            return self._asks_otherwise(what)
        if what.startswith("reasoning") and self._opens_reasoning():
            return True
        probes, marks = _PROBES[what]
        for turns in probes:
            with rejections_ignored():
                chat = Conversation(turns, (TOOL,) if has_tools else ())
                if _in_order(marks, self._render(chat, turns[-1].role == "user")):
                    return True
        return False

    def _opens_reasoning(self) -> bool:
        """Whether the generation prompt opens a reasoning, so that the model writes one in any case."""
        with rejections_ignored():
            return self._render(Conversation((QUESTION,)), True).rstrip().endswith("<think>")
        return False

    def _asks_otherwise(self, what: str) -> bool:
        """Whether a question is put in another way beside tools or documents."""
        tools, documents = ((TOOL,), ()) if what == "tools" else ((), (DOCUMENT,))
        with rejections_ignored():
            plain, given = Conversation((QUESTION,)), Conversation((QUESTION,), tools, documents)
            return self._render(given, True) != self._render(plain, True)
        return False


def _kinds(message: Message, is_begun: bool) -> Iterator[tuple[str, str]]:
    """The kinds of things in a turn, each with some of its text."""
    calls = message.tool_calls
    match message.role:
        case "system":
            yield "system message between turns" if is_begun else "system message", message.content
        case "tool":
            yield "tool result", message.content
        case "assistant":
            if calls:
                yield "tool call", calls[0].name
            if len(calls) > 1:
                yield "second tool call", calls[1].name
            if calls and message.content.strip():
                yield "answer beside a tool call", message.content
            if message.reasoning and message.learned:
                yield "reasoning before a tool call" if calls else "reasoning", message.reasoning


def _in_order(marks: tuple[str, ...], text: str) -> bool:
    at = 0
    for mark in marks:
        at = text.find(mark, at)
        if at < 0:
            return False
        at += len(mark)
    return True
