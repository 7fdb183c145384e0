"""Ctrl-C around Modal's client: its contexts end as if nothing had come, and its waiting is confused by it."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

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


class InThread(Generic[_T]):
    """A function's call in a thread of its own: Ctrl-C reaches who waits for it, and not Modal's client inside."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self._outcome: _T
        self._error: BaseException | None = None
        self._ended = threading.Event()  # an interrupted Thread.join takes the thread for ended (Python 3.11, 3.12)

        def run() -> None:
            try:
                self._outcome = function()
            except BaseException as error:  # Modal's cancellation is one
                self._error = error
            finally:
                self._ended.set()

        threading.Thread(target=run, daemon=True).start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, however that is."""
        self._ended.wait(timeout)

    def result(self) -> _T:
        """Wait for its end; return or raise what it did."""
        try:
            self._ended.wait()
        except KeyboardInterrupt:
            # What Modal's client is doing is cut off when the process ends, of which asyncio would tell in tracebacks.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        if self._error is not None:
            raise self._error
        return self._outcome
