"""SIGINT and SIGTERM turned into a question that the loop asks between microbatches."""

import signal
import threading
from types import FrameType
from typing import Any

from strop.errors import Interrupted


class StopSignals:
    """While entered, remembers the first SIGINT or SIGTERM; `check` raises it where the state is consistent.

    A handler that raised by itself could strike inside the optimizer's update or a file write. Nothing is lost by
    waiting for the next microbatch: the step in progress has changed no parameter yet.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses to set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self._received is not None:
            raise Interrupted(f"stopped by {self._received}")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number).name
