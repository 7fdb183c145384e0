"""Signs of life: what takes long, and for how long; drawn in place on a terminal, ever more rarely said elsewhere.

A thread of its own says so, because whatever takes long has the others.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, repeat

from rich.console import Console
from rich.live import Live
from rich.text import Text

from strop.readable import clock

Seen = Callable[[str], None]
"""Told how far it has come, such as `12,000 rows`."""

_AT_ONCE_ENOUGH, _REDRAW = 2.0, 0.25
_FIRST_LINE, _RAREST_LINE = 10.0, 300.0
"""Seconds."""

_GONE = (OSError, ValueError)
"""What a broken or closed output raises; its next user says so."""


class Wait:
    """Something that takes long.

    Args:
        what: Such as `reading the rows`.
    """

    def __init__(self, what: str) -> None:
        self._what, self._seen = what, ""

    def see(self, seen: str) -> None:
        """How far it has come."""
        self._seen = seen

    def line(self, seconds: float) -> str:
        """What is said of it after so many seconds."""
        return f"{self._what}{f': {self._seen}' if self._seen else ''} ({clock(seconds)})"


@contextmanager
def waiting_in_place(what: str, draw: Callable[[str | None], None]) -> Iterator[Seen]:
    """Within its context, after two seconds, keep a terminal's line about it up to date.

    Args:
        what: What takes long.
        draw: Called with the line; in the end with None, if it was called at all.
    """
    wait, drawn = Wait(what), threading.Event()

    def tick(seconds: float) -> None:
        drawn.set()
        draw(wait.line(seconds))

    try:
        with _ticking(tick, accumulate(repeat(_REDRAW), initial=_AT_ONCE_ENOUGH)):
            yield wait.see
    finally:
        if drawn.is_set():
            with suppress(*_GONE):
                draw(None)


@contextmanager
def waiting_by_lines(what: str, note: Callable[[str], None]) -> Iterator[Seen]:
    """Within its context, say in a line after 10, 30, 70 seconds and so on that it is still going on."""
    wait = Wait(what)
    gaps = (min(_FIRST_LINE * 2**n, _RAREST_LINE) for n in range(10**6))
    with _ticking(lambda seconds: note(wait.line(seconds)), accumulate(gaps)):
        yield wait.see


@contextmanager
def waiting_on(console: Console, what: str) -> Iterator[Seen]:
    """The same below whatever else this terminal shows; the line goes in the end."""
    live = Live(console=console, auto_refresh=False, transient=True)

    def draw(line: str | None) -> None:
        if line is None:
            live.stop()
            return
        if not live.is_started:
            live.start()
            console.show_cursor(True)  # a kill would leave it hidden
        live.update(Text(line, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    with waiting_in_place(what, draw) as seen:
        yield seen


@contextmanager
def _ticking(tick: Callable[[float], None], times: Iterable[float]) -> Iterator[None]:
    """Call `tick` from a thread with the seconds since now, at these times, until the context ends."""
    began, ended = time.monotonic(), threading.Event()

    def work() -> None:
        for at in times:
            if ended.wait(max(0.0, began + at - time.monotonic())):
                return
            try:
                tick(time.monotonic() - began)
            except _GONE:
                return

    thread = threading.Thread(target=work, name="strop-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
