"""A generated text -> its reasoning, content and calls of tools.

Reasoning ends where the run's chat template ends it. Calls are believed only if the template, given them back in the
conversation at hand, writes the same text, whitespace aside. Whatever is not believed is content, unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from strop.data.examples import Conversation, Example, ToolCall
from strop.serving.markup import Form, Markup, pattern, searcher, squeezed

_PARTS = ((1, 0), (1, 1), (0, 0), (0, 1))
"""Reasoning and content, or none, beside calls; in the order to be tried, because content may look like reasoning."""

_MOST_CALLS = 32
_MOST_BLANKS = 64
"""Whitespace inside half-written markup, beyond which it is no longer taken for markup."""


@dataclass(frozen=True, slots=True)
class Said:
    """The parts of an answer; of one that is still being written, what will not change any more."""

    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class AnswerReader:
    """Reads the answers to one question.

    Args:
        markup: Of the run's template.
        question: What is answered. Only calls of the tools that it declares are believed.

    Attributes:
        decode: Token ids -> the text to read.
    """

    def __init__(self, markup: Markup, question: Example) -> None:
        self._markup, self.decode = markup, markup.decode
        self._chat = question if isinstance(question, Conversation) else Conversation(())
        self._tools = {tool["function"]["name"] for tool in self._chat.tools}

    def read(self, text: str) -> Said:
        """The parts of a complete answer; its text is without the stop token."""
        return self._calls(text) or self._parts(text, is_whole=True)

    def so_far(self, text: str) -> Said:
        """Of an answer that begins with this text, what is sure."""
        return self._parts(text, is_whole=False)

    def _calls(self, text: str) -> Said | None:
        """The parts of an answer with calls, if the template writes it so."""
        markup = self._markup
        one = next((form for r, c in _PARTS if (form := markup.form(r, c, 1))), None)
        count = len(searcher(one.after_name()).findall(text)) if one and self._tools else 0
        if not 0 < count <= _MOST_CALLS:
            return None
        for form in (markup.form(r, c, count) for r, c in _PARTS):
            if found := self._believed(form, text):
                return found
        return None

    def _believed(self, form: Form | None, text: str) -> Said | None:
        message = form.read(text) if form else None
        if message is None or not {call.name for call in message.tool_calls} <= self._tools:
            return None
        if not self._markup.writes(self._chat, message, text):
            return None
        plain = self._markup.plain_text
        return Said(plain(message.content), plain(message.reasoning), message.tool_calls)

    def _parts(self, text: str, is_whole: bool) -> Said:
        """Reasoning and content. Of an unfinished text, without an end that may yet turn out to be markup."""
        markup, at, reasoning = self._markup, 0, ""
        if markup.opening is not None and (begin := pattern(markup.opening).match(text)):
            closings = [literal for literal in (markup.closing, self._tools and markup.call_after_reasoning) if literal]
            ends = [end for literal in closings if (end := searcher(literal).search(text, begin.end()))]
            if not ends:
                sure = len(text) if is_whole else _sure(text, begin.end(), closings)
                return self._said("", text[begin.end() : sure])
            end = min(ends, key=lambda found: found.start())
            reasoning, at = text[begin.end() : end.start()], end.end()
            if end.re is not searcher(markup.closing):  # a call, and not one that was believed
                return self._said(text[end.start() :] if is_whole else "", reasoning)
        elif begin := pattern(markup.plain).match(text) if markup.plain.strip() else None:
            at = begin.end()
        elif not is_whole and _may_be(text, [literal for literal in (markup.opening, markup.plain) if literal]):
            return Said("")
        return self._said(text[at : len(text) if is_whole else self._sure_content(text, at)], reasoning)

    def _sure_content(self, text: str, at: int) -> int:
        """Where content ends that cannot be the beginning of a call."""
        if not self._tools or not self._markup.call:
            return len(text)
        if _may_be(text[at:], [self._markup.call]) or pattern(self._markup.call).match(text, at):
            return at
        return _sure(text, at, self._markup.calls_after_content)

    def _said(self, content: str, reasoning: str) -> Said:
        return Said(self._markup.plain_text(content), self._markup.plain_text(reasoning))


def _sure(text: str, start: int, literals: Sequence[str]) -> int:
    """The first place from `start` on where one of these literals begins, or may begin once more text has come."""
    found = [end.start() for literal in literals if (end := searcher(literal).search(text, start))]
    longest = max((len(literal) + _MOST_BLANKS for literal in literals), default=0)
    places = range(max(start, len(text) - longest), len(text))
    return min([*found, next((i for i in places if _may_be(text[i:], literals)), len(text))])


def _may_be(text: str, literals: Sequence[str]) -> bool:
    """Whether a text may be the beginning of one of these literals, whitespace aside."""
    return any(squeezed(literal).startswith(squeezed(text)) for literal in literals)
