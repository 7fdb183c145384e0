"""Ctrl-C in Modal's client (1.6.4): a context of its ends as if nothing had come, its log stream in tracebacks."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")


@contextmanager
def held_back(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context; once it is open, Ctrl-C waits until it is closed.

    `modal.App.run` swallows a Ctrl-C that comes while it is open or closes, after which nobody knows of the call that
    was spawned in it. While it opens, which may take the building of an image, Ctrl-C ends it at once.

    Raises:
        KeyboardInterrupt: After the context's end, where Ctrl-C has come.
    """
    came = True  # until the handler stands: what the context swallows before that has come too
    previous = signal.getsignal(signal.SIGINT)
    raises = threading.current_thread() is threading.main_thread() and previous is signal.default_int_handler

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        with context:
            if raises:
                signal.signal(signal.SIGINT, remember)
            came = False
            yield
    finally:
        if raises:
            signal.signal(signal.SIGINT, previous)
    if came:
        raise KeyboardInterrupt


def run(waiting: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run`, which Ctrl-C leaves without a word.

    Modal's log stream, when cancelled, forgets a task of its own; asyncio would tell of it when the process ends.

    Raises:
        KeyboardInterrupt: Ctrl-C has come, and the coroutine was cancelled.
    """
    try:
        return asyncio.run(waiting)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise


@asynccontextmanager
async def cancellable() -> AsyncIterator[None]:
    """Keep a cancellation one: Modal's log stream, when cancelled, fails at closing the generator that it awaits."""
    try:
        yield
    except Exception:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise
