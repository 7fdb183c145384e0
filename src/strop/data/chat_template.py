"""Conversations -> text in the model's own chat template, split into prompts and answers.

The cuts come from rendering the conversation turn by turn, never from searching the text for markers:

    prompt = render(turns before the answer, with a generation prompt)      must be a prefix of
    whole  = render(all turns)

A template that rewrites earlier turns when more follow (Qwen3 drops their reasoning) gives one sample for each answer,
each exactly what the model reads and writes at that turn.
"""

import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import Environment

from strop.data.dated import dated
from strop.data.examples import Conversation, Message
from strop.data.places import ANSWER, CALL, QUESTION, TOOL, Places
from strop.data.prompts import Segment, as_json
from strop.data.written import require_written
from strop.errors import DataError, ModelError
from strop.resolve import cache_dir

_PROBE_SECONDS = 60
_PROBE_CODE = """
import json, sys
from contextlib import suppress
from transformers.utils.chat_template_utils import render_jinja_template
source, values, chats = json.load(sys.stdin)
with suppress(ImportError, ValueError, OSError):
    import resource, time
    seconds = int(time.process_time()) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for chat in chats:
    for prompt in (False, True):
        try:
            text = render_jinja_template([chat], chat_template=source, add_generation_prompt=prompt, **values)
        except MemoryError:
            sys.exit(3)
        except Exception:
            pass
"""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is learned from some turns of a conversation.

    Attributes:
        segments: Texts that joined give the whole text.
        num_turns: How many of the conversation's turns it holds; 0 if the row is no conversation.
        context: Indices of segments that are answers, but not learned.
    """

    segments: list[Segment]
    num_turns: int
    context: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A conversation's first turns, to be rendered."""

    chat: Conversation
    num_turns: int
    generation_prompt: bool


class ChatTemplate:
    """A chat template, tried once in a child process before it runs in this one.

    Args:
        tokenizer: A fast tokenizer.
        source: The Jinja template. It is untrusted: transformers renders it in its sandbox.

    Attributes:
        source: The template that is rendered; it prints one day for ever.
        places: What it has a place for.
        probe: A question and its answer as segments.

    Raises:
        ModelError: The template does not compile, does not finish, or cannot render a question and its answer.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = dated(source)
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        self._added = tuple(token.content for token in added if token.content)
        self.places = Places(lambda chat, generation_prompt: self.render([chat], generation_prompt)[0])
        _try_in_child(self.source, dict(tokenizer.special_tokens_map))
        try:
            [[sample]] = self.split([_PROBE])
        except DataError as error:
            raise ModelError(f"cannot train with the model's chat template: {error}") from error
        self.probe = sample.segments

    def render(self, chats: Sequence[Conversation], generation_prompt: bool) -> list[str]:
        """The template's text for each conversation.

        Raises:
            DataError: The template rejects one of them; the error does not say which.
        """
        return self._render([_Asked(chat, len(chat.messages), generation_prompt) for chat in chats])

    def prompt(self, chat: Conversation) -> str:
        """The text that generation starts from: before the last answer, or after a question that has none.

        Raises:
            DataError: The template rejects the conversation or leaves something of it out.
        """
        self._require_place(chat)
        last = len(chat.messages) - 1
        if chat.messages[last].role != "assistant":
            [text] = self.render([chat], True)
            require_written(chat, text, last + 1, [])
            return text
        if not _is_asked(chat, last):
            return self._opening(self.render([chat], False)[0])
        [text] = self._render([_Asked(chat, last, True)])
        require_written(chat, text, last, [])
        return text

    @cached_property
    def call_probe(self) -> str:
        """A question, and a call of a tool as the answer; empty if the template has no calls."""
        with suppress(DataError):
            return self._apply([[as_json(QUESTION), self.turn(CALL)]], replace(_PROBE, tools=(TOOL,)), False)[0]
        return ""

    @cached_property
    def copies_calls(self) -> bool:
        """Whether it writes calls with their keys in the order that they come in, as Mistral's does."""
        turn = self.turn(CALL)
        calls = [dict(reversed(call.items())) for call in turn["tool_calls"]]
        calls = [call | {"function": dict(reversed(call["function"].items()))} for call in calls]
        asked = [as_json(QUESTION), turn | {"tool_calls": calls}]
        with suppress(DataError):
            return self._apply([asked], replace(_PROBE, tools=(TOOL,)), False)[0] != self.call_probe
        return False

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
        wholes = self._render([_Asked(chat, len(chat.messages), False) for chat in chats])
        pairs = [(i, k) for i, ks in enumerate(answers) for k in ks]
        inner = [(i, k) for i, k in pairs if k + 1 < len(chats[i].messages)]
        later = [(i, k) for i, k in pairs if _is_asked(chats[i], k)]
        prompts = dict(zip(later, self._render([_Asked(chats[i], k, True) for i, k in later]), strict=True))
        ends = dict(zip(inner, self._render([_Asked(chats[i], k + 1, False) for i, k in inner]), strict=True))
        found = []
        for i, chat in enumerate(chats):
            own = {k: ends.get((i, k), wholes[i]) for k in answers[i]}
            begins = {k: prompts[i, k] if (i, k) in prompts else self._opening(own[k]) for k in answers[i]}
            found.append(self._samples(chat, wholes[i], begins, own, whole_rows))
        return found

    def _render(self, asked: Sequence[_Asked]) -> list[str]:
        """The text of each, with one call of the template for all that give it the same besides their turns."""
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
                [text] = self._apply([[as_json(QUESTION), spelled]], _PROBE, False)
                if "strop_probe_place" in text and "{'place'" not in text:
                    return isinstance(spelled["tool_calls"][0]["function"]["arguments"], str)
        return False

    def _require_place(self, chat: Conversation) -> None:
        """Require that the template has a place for all that a conversation has besides texts."""
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

    def _samples(
        self, chat: Conversation, whole: str, prompts: Mapping[int, str], ends: Mapping[int, str], whole_rows: bool
    ) -> list[Sample]:
        self._require_place(chat)
        count = len(chat.messages)
        segments = self._cut(chat, whole, prompts, ends)
        if segments is not None:
            require_written(chat, whole, count, [k for k in prompts if chat.messages[k].learned])
            context = [not chat.messages[k].learned for k in prompts]
            return [Sample(segments, count, frozenset(2 * n + 1 for n, is_context in enumerate(context) if is_context))]
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


def _is_asked(chat: Conversation, turn: int) -> bool:
    """Whether a question comes before an answer; templates reject a conversation without one."""
    return any(message.role != "system" for message in chat.messages[:turn])


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


def _reasoning(message: Message) -> str:
    """An answer's reasoning, from its own field or from the beginning of its content."""
    if message.reasoning:
        return message.reasoning.strip("\n")
    inside, closed, _ = message.content.partition(_CLOSE)
    return inside.strip().removeprefix(_OPEN).strip("\n") if closed else ""


def _tail(prompt: str, whole: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return prompt[:same][-40:]


_PROBE = Conversation((QUESTION, ANSWER))


def _try_in_child(source: str, special_tokens: dict[str, Any]) -> None:
    """Render a few conversations within limits on time and memory, once per template on this machine."""
    marker = cache_dir() / "templates" / hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()
    if marker.exists():
        return
    roles = [["user"], ["user", "assistant"], ["system", "user", "assistant", "user", "assistant"]]
    chats = [[{"role": role, "content": f"{role} text"} for role in turns] for turns in roles]
    values = {key: value for key, value in special_tokens.items() if isinstance(value, str)}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE_CODE],
            input=json.dumps([source, values, chats]),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the chat template did not finish within {_PROBE_SECONDS} s, so it is not used") from error
    if child.returncode == 3 or child.returncode < 0:
        raise ModelError("the chat template used more than 10 s or 4 GiB for a short conversation, so it is not used")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"the chat template could not be tried: {last}")
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
