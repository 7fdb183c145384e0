"""Conversations -> text in the model's own chat template, split into prompts and answers.

The cuts come from rendering the conversation turn by turn, never from searching the text for markers:

    prompt = render(turns before the answer, with a generation prompt)      must be a prefix of
    whole  = render(all turns)

A template that rewrites earlier turns when more follow (Qwen3 drops their reasoning) gives one sample for each answer,
each exactly what the model reads and writes at that turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from strop.data.examples import Conversation, Message
from strop.data.places import QUESTION
from strop.data.prompts import Segment
from strop.data.rendering import PROBE, Part, Renderer
from strop.data.written import require_written
from strop.errors import DataError, ModelError

_OPEN, _CLOSE = "<think>", "</think>"
_HERE = "strop_continues_here"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is learned from some turns of a conversation.

    Attributes:
        segments: Texts that joined give the whole text.
        num_turns: How many of the conversation's turns it holds; 0 if the row is no conversation.
        context: Indices of segments that are answers, but not learned.
        ends: How many turns there are up to the end of each answer; of n answers, the k-th is segment 2k + 1.
    """

    segments: list[Segment]
    num_turns: int
    context: frozenset[int] = frozenset()
    ends: tuple[int, ...] = ()

    def apart(self) -> list["Sample"]:
        """A sample for each learned answer, after all that comes before it."""
        answers = [(2 * k + 1, end) for k, end in enumerate(self.ends) if 2 * k + 1 not in self.context]
        return [
            Sample([("".join(text for text, _ in self.segments[:at]), False), self.segments[at]], end)
            for at, end in answers
        ]


class ChatTemplate(Renderer):
    """A chat template, and where in its text the answers are.

    Attributes:
        probe: A question and its answer as segments.
        call_probe: A question, and a call of a tool as the answer; empty if the template has no calls.

    Raises:
        ModelError: See `Renderer`; or the template does not compile, or cannot render a question and its answer.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        super().__init__(tokenizer, source)
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        self._added = tuple(token.content for token in added if token.content)
        try:
            [[sample]] = self.split([PROBE])
            self.call_probe = self._call_probe()
        except DataError as error:
            raise ModelError(f"cannot train with the model's chat template: {error}") from error
        self.probe = sample.segments

    def prompt(self, chat: Conversation) -> str:
        """The text that generation starts from: before the last answer, or after a question that has none.

        Raises:
            DataError: The template rejects the conversation or leaves something of it out.
        """
        self.require_place(chat)
        last = len(chat.messages) - 1
        if chat.messages[last].role != "assistant":
            [text] = self.render([chat], True)
            require_written(chat, text, last + 1, [])
            return text
        if not _is_asked(chat, last):
            return self._opening(self.render([chat], False)[0])
        [text] = self.render_parts([(chat, [(last, True)])])
        require_written(chat, text, last, [])
        return text

    def begun(self, chat: Conversation) -> str:
        """The text up to the end of the last message's content, which a model is to continue.

        Raises:
            DataError: The template rejects the conversation or leaves this message out.
        """
        *before, last = chat.messages
        marked = replace(last, content=f"{last.content}{_HERE} ")
        [text] = self.render([replace(chat, messages=(*before, marked))], False)
        begun, found, after = text.rpartition(_HERE)
        if not found:
            raise DataError("not in the chat template: it leaves out the message that is to be continued")
        return begun if after.startswith(" ") else begun.rstrip()  # what trims the mark's blank trims the content's

    def split(self, chats: Sequence[Conversation], whole_rows: bool = False) -> list[list[Sample]]:
        """Each conversation's samples: one, or one for each learned answer if the template rewrites earlier turns.

        Args:
            chats: Each ends with a learned answer.
            whole_rows: One sample in any case, because all of its text is learned (data.train_on=all).

        Raises:
            DataError: The template rejects a conversation, leaves something of it out, or begins an answer in another
                way than its generation prompt does.
        """
        answers = [_answers(chat, whole_rows) for chat in chats]
        parts = [_parts(chat, ks) for chat, ks in zip(chats, answers, strict=True)]
        rendered = iter(self.render_parts(list(zip(chats, parts, strict=True))))
        found = []
        for chat, ks, own in zip(chats, answers, parts, strict=True):
            texts = dict(zip(own, rendered, strict=False))
            ends = {k: texts[k + 1, False] for k in ks}
            prompts = {k: texts[k, True] if (k, True) in texts else self._opening(ends[k]) for k in ks}
            found.append(self._samples(chat, texts[len(chat.messages), False], prompts, ends, whole_rows))
        return found

    def _samples(
        self, chat: Conversation, whole: str, prompts: Mapping[int, str], ends: Mapping[int, str], whole_rows: bool
    ) -> list[Sample]:
        self.require_place(chat)
        count = len(chat.messages)
        segments = self._cut(chat, whole, prompts, ends)
        if segments is not None:
            require_written(chat, whole, count, [k for k in prompts if chat.messages[k].learned])
            context = [not chat.messages[k].learned for k in prompts]
            unlearned = frozenset(2 * n + 1 for n, is_context in enumerate(context) if is_context)
            return [Sample(segments, count, unlearned, tuple(k + 1 for k in prompts))]
        if whole_rows:
            if not all(message.learned for message in chat.messages if message.role == "assistant"):
                raise DataError("the chat template rewrites earlier turns: data.train_on=all cannot leave one out")
            require_written(chat, whole, count, [count - 1])
            return [Sample([(whole, True)], count)]
        samples = []
        for k, prompt in prompts.items():
            answer = self._answer(chat, k, prompt, ends[k])
            require_written(chat, prompt + answer, k + 1, [k])
            samples.append(Sample([(prompt, False), (answer, True)], k + 1))
        return samples

    def _cut(
        self, chat: Conversation, whole: str, prompts: Mapping[int, str], ends: Mapping[int, str]
    ) -> list[Segment] | None:
        """The whole text as segments; None if an answer reads otherwise here than where it is the last turn."""
        segments: list[Segment] = []
        done, last = 0, len(chat.messages) - 1
        for k, prompt in prompts.items():
            start = len(prompt)
            end = len(whole) if k == last else self._end(whole, ends[k])
            if not whole.startswith(prompt) or end is None or not done <= start <= end:
                return None
            segments += [(whole[done:start], False), (whole[start:end], chat.messages[k].learned)]
            done = end
        return segments

    def _end(self, whole: str, up_to_here: str) -> int | None:
        """Where an answer ends when turns follow it; Phi-3's template puts eos after whichever turn is last."""
        if whole.startswith(up_to_here):
            return len(up_to_here)
        without = up_to_here.removesuffix(self._tokenizer.eos_token or "")
        return len(without) if whole.startswith(without) and without.rstrip().endswith(self._added) else None

    def _opening(self, text: str) -> str:
        """The prompt of an answer that no question comes before: everything up to the generation prompt."""
        asked = Conversation((QUESTION,))
        [plain], [prompted] = self.render([asked], False), self.render([asked], True)
        begin = prompted.removeprefix(plain)
        at = text.find(begin)
        if at < 0 or not begin or begin == prompted:
            raise DataError("the chat template cannot begin with an answer; mark it train: false or remove it")
        return text[: at + len(begin)]

    def _answer(self, chat: Conversation, turn: int, prompt: str, whole: str) -> str:
        """What the model writes after its generation prompt, which may open a reasoning that `whole` leaves out."""
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        message = chat.messages[turn]
        before, opened, after = prompt.rpartition(_OPEN)
        if opened and not after.strip() and whole.startswith(before):
            written = whole[len(before) :].lstrip("\n")
            return f"{_reasoning(message)}\n{_CLOSE}\n\n{written}"
        alone = self._alone(replace(chat, messages=(QUESTION, message)))
        if alone and whole.endswith(alone):
            return alone
        raise DataError(
            f"the chat template does not begin turn {turn + 1} with its own generation prompt: after "
            f"{_tail(prompt, whole)!r} the model would see other text than in training"
        )

    def _alone(self, chat: Conversation) -> str:
        """A turn that answers a question, as text; empty if it does not begin with its generation prompt either.

        Templates that write the turns before an answer in another way once it is there (Mistral moves the system
        message, gpt-oss drops reasoning, Hermes adds a newline) write the answer itself in the same way.
        """
        [prompt], [whole] = self.render([replace(chat, messages=chat.messages[:1])], True), self.render([chat], False)
        return whole[len(prompt) :] if whole.startswith(prompt) else ""


def _answers(chat: Conversation, whole_rows: bool) -> list[int]:
    """The turns that have to be told apart: learned answers; if prompts are learned too, those that are not as well."""
    return [k for k, m in enumerate(chat.messages) if m.role == "assistant" and (m.learned or whole_rows)]


def _parts(chat: Conversation, answers: Sequence[int]) -> list[Part]:
    """What has to be rendered of a conversation: up to each answer's prompt and end, and all of it."""
    prompts = [(k, True) for k in answers if _is_asked(chat, k)]
    return list(dict.fromkeys([*prompts, *((k + 1, False) for k in answers), (len(chat.messages), False)]))


def _is_asked(chat: Conversation, turn: int) -> bool:
    """Whether a question comes before an answer; templates reject a conversation without one."""
    return any(message.role != "system" for message in chat.messages[:turn])


def _reasoning(message: Message) -> str:
    """An answer's reasoning, from its own field or from the beginning of its content."""
    if message.reasoning:
        return message.reasoning.strip("\n")
    inside, closed, _ = message.content.partition(_CLOSE)
    return inside.strip().removeprefix(_OPEN).strip("\n") if closed else ""


def _tail(prompt: str, whole: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return prompt[:same][-40:]
