"""Renders chat templates in a process of its own, each rendering with a limit of time, memory and size.

Templates are code of whoever made the model. One word of one row can send a template into a loop that never ends, and
in this process nothing could end it; there, the kernel does. An ordinary row costs about what it does here: the pipe
takes as long as what transformers does around each rendering.
"""

import atexit
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Any, NamedTuple

from strop.data import template_worker as worker
from strop.errors import DataError, ModelError
from strop.terminal import one_line

_SECONDS, _MORE_PER_BYTE = 2.0, 1e-6
"""Of computing, not of waiting: a thousand times what an ordinary row takes, and more for a large one."""

_CHARACTERS, _MORE_PER_CHARACTER = 1 << 20, 256
"""Of a text that a template writes; more for a large row."""

_REQUEST_CHARACTERS, _REQUEST_CHATS, _PIPE_BYTES = 1 << 20, 64, 1 << 20
_REMEDY = "; set another template in data.chat_template, or leave this row out"


class TemplateOverrun(DataError):
    """A rendering was ended: it took too long, too much memory, or wrote too much."""


class rejections_ignored:
    """Lets a template reject what is tried on it, but not run over a limit."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        return isinstance(error, DataError) and not isinstance(error, TemplateOverrun)


class Chat(NamedTuple):
    """A conversation to render once or several times.

    Attributes:
        turns: As the template takes them.
        given: Values for the template besides them.
        asked: How many of the turns, and whether a generation prompt follows, for each rendering.
    """

    turns: Sequence[Mapping[str, Any]]
    given: Mapping[str, Any]
    asked: Sequence[tuple[int, bool]]


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
    texts: list[str] = []
    for some in _in_requests(chats):
        request = _to_json([source, values, _CHARACTERS, _MORE_PER_CHARACTER, some])
        texts += _process(os.getpid()).answer(request, sum(len(chat.asked) for chat in some))
    return texts


_encoder = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), default=lambda value: f"<{type(value).__name__}>"
)


def _to_json(value: Any) -> str:
    """A value as JSON; what JSON has no word for is named by its type, as transformers does."""
    try:
        return _encoder.encode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the chat template cannot be given this row: {one_line(error)}") from error


def _in_requests(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
    """Conversations a few at a time: a rendering may take the longer the more text its request has."""
    some: list[Chat] = []
    size = 0
    for chat in chats:
        some.append(chat)
        size += sum(len(turn["content"]) for turn in chat.turns)
        if size >= _REQUEST_CHARACTERS or len(some) == _REQUEST_CHATS:
            yield some
            some, size = [], 0
    if some:
        yield some


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

    def answer(self, request: str, count: int) -> list[str]:
        """The texts of one request."""
        data = request.encode("utf-8", "surrogatepass")
        seconds = _SECONDS + len(data) * _MORE_PER_BYTE
        with self._lock:
            child = self._child = self._child or _start()
            assert child.stdin is not None
            try:
                child.stdin.write(worker.HEAD.pack(len(data), seconds) + data)
                child.stdin.flush()
                statuses, texts = _read(child, count)
            except (OSError, EOFError):
                raise _ended(self._end(), seconds) from None
            except BaseException:  # Ctrl-C between a request and its answers: they would be taken for the next one's
                self._end(signal.SIGKILL)
                raise
        for status, text in zip(statuses, texts, strict=True):
            if status != worker.TEXT:
                raise _refusal(status, text)
        return texts

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
        child = subprocess.Popen(
            [sys.executable, "-P", worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals of a terminal are for the run, which answers them at its own time
        )
    except OSError as error:
        raise ModelError(f"cannot start the process that renders chat templates: {error}") from error
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError, AttributeError):  # at the 64 KiB of Linux, the two wait for each other
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
    return child


def _read(child: subprocess.Popen[bytes], count: int) -> tuple[bytes, list[str]]:
    """The status and the text of each rendering."""
    assert child.stdout is not None
    head = child.stdout.read(count * (1 + worker.LENGTH))
    if len(head) < count * (1 + worker.LENGTH):
        raise EOFError
    lengths = struct.unpack(f">{count}Q", head[count:])
    data = child.stdout.read(sum(lengths))
    ends = list(accumulate(lengths, initial=0))
    return head[:count], [data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]


def _refusal(status: int, text: str) -> DataError:
    if status == worker.MEMORY:
        memory = f"{worker.MOST_MEMORY >> 30} GiB"
        return TemplateOverrun(f"the chat template takes too much memory: over {memory} for this row{_REMEDY}")
    if status == worker.TOO_LONG:
        return TemplateOverrun(f"the chat template writes too much: far more than this row holds{_REMEDY}")
    return DataError(f"the chat template rejects this row: {one_line(text)}")


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
