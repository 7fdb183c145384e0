"""Conversations -> text in the model's own chat template, split into prompts and answers.

The cuts come from rendering the conversation turn by turn, never from searching the text for markers:

    prompt = render(turns before the answer, with a generation prompt)      must be a prefix of
    whole  = render(all turns)
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from strop.errors import DataError, ModelError
from strop.resolve import cache_dir

Turns = Sequence[dict[str, str]]
Segment = tuple[str, bool]  # text, and whether it is an answer

# Llama 3's templates print today's date unless given one; rows that change overnight cannot be cached.
DATE = {"date_string": "26 Jul 2024"}
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


class ChatTemplate:
    """A tokenizer's chat template, tried once in a child process before it runs in this one.

    Args:
        tokenizer: A fast tokenizer.
        source: The Jinja template. It is untrusted: transformers renders it in its sandbox.

    Raises:
        ModelError: The template does not compile, does not finish, or cannot render a question and its answer.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        _try_in_child(source, dict(tokenizer.special_tokens_map))
        try:
            [self.probe] = self.split([_turns("user", "assistant")])
        except DataError as error:
            raise ModelError(f"cannot train with the model's chat template: {error}") from error

    def render(self, chats: Sequence[Turns], generation_prompt: bool) -> list[str]:
        """The template's text for each conversation.

        Raises:
            DataError: The template rejects one of them; the error does not say which.
        """
        if not chats:
            return []
        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                [list(chat) for chat in chats],
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **DATE,
            )
        except Exception as error:  # a template may raise anything
            raise DataError(f"the chat template rejects this row: {error}") from error
        return texts

    def split(self, chats: Sequence[Turns]) -> list[list[Segment]]:
        """Each conversation's text as alternating prompt and answer segments; joined, they give the whole text.

        Raises:
            DataError: The template rejects a conversation, or changes earlier turns when more follow.
        """
        answers = [(i, k) for i, chat in enumerate(chats) for k, t in enumerate(chat) if t["role"] == "assistant"]
        inner = [(i, k) for i, k in answers if k + 1 < len(chats[i])]
        wholes = self.render(chats, False)
        prompts = dict(zip(answers, self.render([chats[i][:k] for i, k in answers], True), strict=True))
        ends = dict(zip(inner, self.render([chats[i][: k + 1] for i, k in inner], False), strict=True))
        segments: list[list[Segment]] = [[] for _ in chats]
        done = [0] * len(chats)
        for i, k in answers:
            start = self._start(wholes[i], prompts[i, k], done[i], k)
            end = self._end(wholes[i], ends[i, k], start, k) if (i, k) in ends else len(wholes[i])
            segments[i] += [(wholes[i][done[i] : start], False), (wholes[i][start:end], True)]
            done[i] = end
        for i, whole in enumerate(wholes):
            if done[i] < len(whole):
                segments[i].append((whole[done[i] :], False))
        return segments

    def _start(self, whole: str, prompt: str, done: int, turn: int) -> int:
        if not whole.startswith(prompt) or len(prompt) < done:
            raise DataError(
                f"the chat template does not begin turn {turn + 1} with its own generation prompt: after "
                f"{_tail(prompt, whole)!r} the model would see other text than in training"
            )
        return len(prompt)

    def _end(self, whole: str, up_to_here: str, start: int, turn: int) -> int:
        """Where an answer ends when turns follow it; Phi-3's template puts eos after whichever turn is last."""
        for text in (up_to_here, up_to_here.removesuffix(self._tokenizer.eos_token or "")):
            if whole.startswith(text) and len(text) >= start:
                return len(text)
        raise DataError(
            f"the chat template changes the answer in turn {turn + 1} when more turns follow "
            "(thinking models drop their reasoning then); make one row per answer, with that answer last"
        )


def _tail(prompt: str, whole: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return prompt[:same][-40:]


def _turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} text"} for role in roles]


def _try_in_child(source: str, special_tokens: dict[str, Any]) -> None:
    """Render a few conversations within limits on time and memory, once per template on this machine."""
    marker = cache_dir() / "templates" / hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()
    if marker.exists():
        return
    chats = [
        _turns("user"),
        _turns("user", "assistant"),
        _turns("system", "user", "assistant", "user", "assistant"),
    ]
    values = {key: value for key, value in special_tokens.items() if isinstance(value, str)} | DATE
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
