"""Follows the log and the result of a function call, from any machine and across lost connections.

Ctrl-C needs care in Modal's client (1.6.4): its contexts swallow it, and its log stream ends in tracebacks.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from strop.errors import CloudError, Interrupted
from strop.modal_runs.remote_run import Outcome, read_record
from strop.terminal import log_text

if TYPE_CHECKING:
    import modal


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


_REMEMBERED = 20_000
"""Log entries remembered as seen: more than a stream repeats when it is reopened."""
_LONGEST_WAIT = 30.0

Emit = Callable[[str, str], None]
"""Called with the text of each log entry and its source (stdout, stderr or system)."""


def to_console(text: str, source: str) -> None:
    """Print a log entry to the stream that the run printed it to."""
    print(log_text(text), end="", file=sys.stdout if source == "stdout" else sys.stderr, flush=True)


def show_logs(folder: Path, follow: bool, emit: Emit = to_console) -> Outcome | None:
    """Print the log of a local folder's run, over all launches; with `follow`, continue until the run ends.

    Returns:
        How the run ended; None without `follow`.

    Raises:
        RecipeError: The folder is not a run on Modal.
        CloudError: Modal cannot be reached, or no longer has the run.
    """
    return run(_show(read_record(folder).call_ids, follow, emit))


async def _show(call_ids: Sequence[str], follow: bool, emit: Emit) -> Outcome | None:
    import modal

    for call_id in call_ids:
        log = CallLog(modal.FunctionCall.from_id(call_id), emit)
        await log.catch_up()
    return await wait(log) if follow else None


async def wait(log: CallLog, patience: float | None = None) -> Outcome | None:
    """Follow a call to its end. Asynchronous, because Ctrl-C in a blocking method of Modal's client causes a traceback.

    Args:
        log: The call's log.
        patience: Seconds to wait for the first log entry; None waits forever.

    Returns:
        The outcome, or None if no entry arrived within `patience`.

    Raises:
        Interrupted: The run was stopped and can be resumed.
        CloudError: Modal refused, or the call ended in a way that strop does not know.
    """
    import modal

    failures = 0
    while True:
        try:
            await log.stream(patience)
            result = await log.call.get.aio(timeout=0)
        except TimeoutError:  # still running: the stream ended because no entries arrived
            failures = 0
            if patience is not None and not log.has_begun:
                return None
        except modal.exception.InputCancellation:
            raise Interrupted("the call was cancelled. Repeat the same command to resume from the checkpoint") from None
        except BrokenPipeError:  # the reader of our output has gone
            raise
        except Exception as error:
            if not is_passing(error):
                raise _explain(error) from error
            failures += 1
            delay = min(_LONGEST_WAIT, 2.0**failures)
            log.emit(f"lost the connection ({type(error).__name__}); the run continues, reconnecting\n", "system")
            await asyncio.sleep(delay)
        else:
            await log.catch_up()
            return Outcome(**result)


class CallLog:
    """A call's log; emits each entry once, whether it was streamed or fetched."""

    def __init__(self, call: modal.FunctionCall[dict[str, Any]], emit: Emit) -> None:
        self.call = call
        self.emit = emit
        self._seen: OrderedDict[tuple[datetime, str], None] = OrderedDict()

    @property
    def has_begun(self) -> bool:
        """Whether the call has logged anything."""
        return bool(self._seen)

    async def catch_up(self) -> None:
        """Emit everything logged so far."""
        since = next(reversed(self._seen))[0] if self._seen else None
        with cloud_errors():
            await self._take(self.call.logs.fetch.aio(since=since))

    async def stream(self, patience: float | None) -> None:
        """Emit new entries until the call ends or nothing arrives for `patience` seconds."""
        await self._take(self.call.logs.stream.aio(timeout=patience))

    async def _take(self, entries: AsyncGenerator[modal.types.LogEntry]) -> None:
        async with cancellable(), aclosing(entries):
            async for entry in entries:
                key = (entry.timestamp, entry.message)
                if key not in self._seen:
                    self._seen[key] = None
                    if len(self._seen) > _REMEMBERED:
                        self._seen.popitem(last=False)
                    self.emit(entry.message, entry.source)


@contextmanager
def cloud_errors() -> Iterator[None]:
    """Replace the errors of Modal's client by strop's.

    Raises:
        CloudError: Modal's client raised an error.
    """
    import modal

    try:
        yield
    except modal.exception.Error as error:
        raise _explain(error) from error


def is_passing(error: Exception) -> bool:
    """Whether the connection failed rather than the run."""
    import modal

    kinds = (modal.exception.ConnectionError, modal.exception.ServiceError, modal.exception.InternalError)
    return isinstance(error, (*kinds, modal.exception.ResourceExhaustedError, OSError))


def _explain(error: Exception) -> Exception:
    import modal

    if isinstance(error, Interrupted):
        return Interrupted(f"{error} (this launch has no attempts left). Repeat the same command to resume")
    if isinstance(error, modal.exception.FunctionTimeoutError):
        return Interrupted("the last attempt hit its time limit. Repeat the same command to resume from the checkpoint")
    if isinstance(error, modal.exception.AuthError):
        return CloudError("not logged in to Modal: run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET")
    if isinstance(error, modal.exception.NotFoundError):
        return CloudError(f"not found on Modal (it may have been deleted): {error}")
    if isinstance(error, modal.exception.ConnectionError):
        return CloudError(f"cannot reach Modal: {error}")
    return CloudError(f"Modal: {error or type(error).__name__}")
