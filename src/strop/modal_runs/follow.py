"""The log and the result of a function call: from anywhere, and across a connection that comes and goes."""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import CloudError, Interrupted
from strop.modal_runs.interrupts import cancellable, run
from strop.modal_runs.job import Outcome
from strop.modal_runs.record import read_record

if TYPE_CHECKING:
    import modal

_REMEMBERED = 20_000
"""Entries that are known not to be new: more than a stream repeats when it is opened again."""
_LONGEST_WAIT = 30.0

Emit = Callable[[str, str], None]
"""Called with the text and the source (stdout, stderr or system) of each log entry."""


def to_console(text: str, source: str) -> None:
    """Print a log entry where the run would have printed it."""
    print(text, end="", file=sys.stdout if source == "stdout" else sys.stderr, flush=True)


def show_logs(folder: Path, follow: bool, emit: Emit = to_console) -> Outcome | None:
    """Print the log of the run of a local folder, over all launches; wait for its end if `follow`.

    Returns:
        How the run ended, or None where it has not, or nobody waited.

    Raises:
        RecipeError: The folder is no run on Modal.
        CloudError: Modal cannot be reached, or does not know the run any more.
    """
    return run(_show(read_record(folder).call_ids, follow, emit))


async def _show(call_ids: Sequence[str], follow: bool, emit: Emit) -> Outcome | None:
    import modal

    for call_id in call_ids:
        log = CallLog(modal.FunctionCall.from_id(call_id), emit)
        await log.catch_up()
    return await wait(log) if follow else None


async def wait(log: "CallLog", patience: float | None = None) -> Outcome | None:
    """Follow a call to its end; asynchronous, for Ctrl-C in a blocking method of Modal's client ends in a traceback.

    Args:
        log: Of the call.
        patience: Seconds to wait for the first entry; None waits for ever.

    Returns:
        The outcome, or None where nothing was heard within `patience`.

    Raises:
        Interrupted: It was stopped and can go on.
        CloudError: Modal refuses, or the call ended in a way that strop does not know.
    """
    import modal

    failures = 0
    while True:
        try:
            await log.stream(patience)
            result = await log.call.get.aio(timeout=0)
        except TimeoutError:  # still going on: the stream ended for want of entries
            failures = 0
            if patience is not None and not log.has_begun:
                return None
        except modal.exception.InputCancellation:
            raise Interrupted("the call was cancelled. The same command goes on from the checkpoint") from None
        except BrokenPipeError:  # who was reading our output has gone
            raise
        except Exception as error:
            if not is_passing(error):
                raise _explain(error) from error
            failures += 1
            delay = min(_LONGEST_WAIT, 2.0**failures)
            log.emit(f"the connection is lost ({type(error).__name__}); the run goes on, trying again\n", "system")
            await asyncio.sleep(delay)
        else:
            await log.catch_up()
            return Outcome(**result)


class CallLog:
    """A call's log, each entry once, whether it was streamed or fetched."""

    def __init__(self, call: "modal.FunctionCall[dict[str, Any]]", emit: Emit) -> None:
        self.call = call
        self.emit = emit
        self._seen: OrderedDict[tuple[datetime, str], None] = OrderedDict()

    @property
    def has_begun(self) -> bool:
        """Whether anything was heard of the call."""
        return bool(self._seen)

    async def catch_up(self) -> None:
        """All that was logged until now."""
        since = next(reversed(self._seen))[0] if self._seen else None
        with cloud_errors():
            await self._take(self.call.logs.fetch.aio(since=since))

    async def stream(self, patience: float | None) -> None:
        """What is logged from now on, to the call's end or until nothing came for `patience` seconds."""
        await self._take(self.call.logs.stream.aio(timeout=patience))

    async def _take(self, entries: "AsyncGenerator[modal.types.LogEntry]") -> None:
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
    """Modal's errors in a person's words.

    Raises:
        CloudError: In place of an error of Modal's client.
    """
    import modal

    try:
        yield
    except modal.exception.Error as error:
        raise _explain(error) from error


def is_passing(error: Exception) -> bool:
    """Whether the connection failed, and not the run."""
    import modal

    kinds = (modal.exception.ConnectionError, modal.exception.ServiceError, modal.exception.InternalError)
    return isinstance(error, (*kinds, modal.exception.ResourceExhaustedError, OSError))


def _explain(error: Exception) -> Exception:
    import modal

    if isinstance(error, Interrupted):
        return Interrupted(f"{error} (no attempt is left in this launch). The same command goes on")
    if isinstance(error, modal.exception.FunctionTimeoutError):
        return Interrupted("the last attempt ran into its time limit. The same command goes on from the checkpoint")
    if isinstance(error, modal.exception.AuthError):
        return CloudError(
            "Modal does not know you here: run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        )
    if isinstance(error, modal.exception.NotFoundError):
        return CloudError(f"Modal does not have it (any more): {error}")
    if isinstance(error, modal.exception.ConnectionError):
        return CloudError(f"Modal cannot be reached: {error}")
    return CloudError(f"Modal: {error or type(error).__name__}")
