"""Renders chat templates in a process of its own, each rendering with a limit of time, memory and size.

Templates are code of whoever made the model. One word of one row can send a template into a loop that never ends, and
in this process nothing could end it; there, the kernel does. An ordinary row costs no more than here: what transformers
does around each rendering takes longer than a pipe.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

from strop.data import template_worker as worker
from strop.errors import DataError, ModelError
from strop.terminal import one_line

_SECONDS, _MORE_PER_BYTE = 2.0, 1e-6
"""Of computing, not of waiting: a thousand times what an ordinary row takes, and more for a large one."""

_CHARACTERS, _MORE_PER_CHARACTER = 1 << 20, 256
"""Of a text that a template writes; more for a large row."""

_REQUEST_BYTES = 1 << 20
_REMEDY = "; set another template in data.chat_template, or leave this row out"


class TemplateOverrun(DataError):
    """A rendering was ended: it took too long, too much memory, or wrote too much."""


class rejections_ignored:
    """Lets a template reject what is tried on it, but not run over a limit."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        return isinstance(error, DataError) and not isinstance(error, TemplateOverrun)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to render once or several times.

    Attributes:
        turns: Each as JSON.
        given: Values for the template besides them, as a JSON object.
        asked: How many of the turns, and whether a generation prompt follows, for each rendering.
    """

    turns: Sequence[str]
    given: str
    asked: Sequence[tuple[int, bool]]

    def to_json(self) -> tuple[str, float]:
        """The worker's form of it, and the seconds that a rendering may take."""
        turns = ",".join(self.turns)
        size = len(turns) + len(self.given)
        seconds = _SECONDS + size * _MORE_PER_BYTE
        room = _CHARACTERS + size * _MORE_PER_CHARACTER
        asked = ",".join(f"[{number},{'true' if prompt else 'false'}]" for number, prompt in self.asked)
        return (
            f'{{"messages":[{turns}],"given":{self.given},"asked":[{asked}],"seconds":{seconds},"room":{room}}}',
            seconds,
        )


def render(source: str, values: Mapping[str, Any], chats: Sequence[Chat]) -> list[str]:
    """A template's texts of conversations, one after the other, each of them in the order in which it was asked for.

    Args:
        source: The Jinja template.
        values: What every rendering gets, such as special tokens.
        chats: The conversations.

    Raises:
        TemplateOverrun: A rendering took too long, too much memory, or wrote too much.
        DataError: The template rejects a conversation; with several, the error does not say which.
        ModelError: The process that renders cannot be started.
    """
    head = f'{{"source":{to_json(source)},"values":{to_json(values)},"chats":['
    texts: list[str] = []
    for count, seconds, entries in _in_requests(chats):
        texts += _process(os.getpid()).answer(f"{head}{','.join(entries)}]}}", count, seconds)
    return texts


_encoder = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), default=lambda value: f"<{type(value).__name__}>"
)


def to_json(value: Any) -> str:
    """A value as JSON; what JSON has no word for is named by its type, as transformers does.

    Raises:
        DataError: It is nested too deeply.
    """
    try:
        return _encoder.encode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the chat template cannot be given this row: {one_line(error)}") from error


def _in_requests(chats: Sequence[Chat]) -> Iterator[tuple[int, float, list[str]]]:
    """Conversations in requests of a megabyte: how many texts each asks for, the longest time for one, and the JSON."""
    entries: list[str] = []
    count, most, size = 0, 0.0, 0
    for chat in chats:
        entry, seconds = chat.to_json()
        entries.append(entry)
        count, most, size = count + len(chat.asked), max(most, seconds), size + len(entry)
        if size >= _REQUEST_BYTES:
            yield count, most, entries
            entries, count, most, size = [], 0, 0.0, 0
    if entries:
        yield count, most, entries


@lru_cache(1)
def _process(pid: int) -> "_Process":
    """The one of this process: after a fork, the child gets its own."""
    return _Process()


class _Process:
    """The process, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self._end)

    def answer(self, request: str, count: int, seconds: float) -> list[str]:
        """The texts of one request."""
        data = request.encode("utf-8", "surrogatepass")
        with self._lock:
            child = self._child = self._child or _start()
            assert child.stdin is not None
            try:
                child.stdin.write(worker.HEAD.pack(0, len(data)) + data)
                child.stdin.flush()
                answers = [_read(child) for _ in range(count)]
            except (OSError, EOFError):
                raise _ended(self._end(), seconds) from None
            except BaseException:  # Ctrl-C between a request and its answers: they would be taken for the next one's
                self._end(signal.SIGKILL)
                raise
        return [_text(*answer) for answer in answers]

    def _end(self, number: int = 0) -> int:
        """End the process; its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        if number:
            child.send_signal(number)
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return child.wait()


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals of a terminal are for the run, which answers them at its own time
        )
    except OSError as error:
        raise ModelError(f"cannot start the process that renders chat templates: {error}") from error


def _read(child: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    assert child.stdout is not None
    head = child.stdout.read(worker.HEAD.size)
    if len(head) < worker.HEAD.size:
        raise EOFError
    status, length = worker.HEAD.unpack(head)
    return status, child.stdout.read(length)


def _text(status: int, data: bytes) -> str:
    text = data.decode("utf-8", "surrogatepass")
    if status == worker.TEXT:
        return text
    if status == worker.MEMORY:
        raise TemplateOverrun(f"the chat template takes too much memory: over {_memory()} for this row{_REMEDY}")
    if status == worker.TOO_LONG:
        raise TemplateOverrun(f"the chat template writes too much: far more than this row holds{_REMEDY}")
    raise DataError(f"the chat template rejects this row: {one_line(text)}")


def _ended(code: int, seconds: float) -> Exception:
    """Why the process ended in the middle of a request."""
    if code == -signal.SIGPROF:
        return TemplateOverrun(
            f"the chat template does not finish: stopped after {seconds:.2g} s of computing on this row{_REMEDY}"
        )
    if code in (0, 1, 2):
        return ModelError(
            "the process that renders chat templates does not run; is jinja2 installed as strop needs it?"
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return TemplateOverrun(f"the chat template ends the process that renders it ({how}) with this row{_REMEDY}")


def _memory() -> str:
    return f"{worker.MOST_MEMORY >> 30} GiB"
