"""Works around Ctrl-C in Modal's client (1.6.4), whose contexts swallow it and whose log stream ends in tracebacks."""

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
    """Enter a context; while it is open, hold Ctrl-C back until it has closed.

    `modal.App.run` swallows a Ctrl-C that arrives while it is open or closing, and the call that was spawned in it is
    then lost. While it is still opening, which may include building an image, Ctrl-C ends it at once.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; raised after the context has closed.
    """
    came = True  # until our handler is installed: an interrupt that the context swallows before that counts too
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
    """`asyncio.run`, but silent on Ctrl-C.

    When cancelled, Modal's log stream leaves one of its tasks behind; asyncio would report it when the process ends.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the coroutine was cancelled.
    """
    try:
        return asyncio.run(waiting)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise


@asynccontextmanager
async def cancellable() -> AsyncIterator[None]:
    """Keep a cancellation a cancellation: Modal's log stream, when cancelled, fails to close its generator."""
    try:
        yield
    except Exception:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from None
        raise
