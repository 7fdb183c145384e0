"""The entry point: one guard around the command line. Whatever ends a command becomes one message and an exit code.

Nothing heavy is imported before the guard stands, so that Ctrl-C is one line in the first second too.
"""

import atexit
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

from strop.errors import OutOfMemoryError, RecipeError, StorageError, StropError, of_system, shown_name

ISSUES = "https://github.com/strop-ai/strop/issues"
_TOLD_SO = {
    signal.SIGINT: "interrupted by Ctrl-C",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP: the terminal was closed",
}
_BY_SIGNAL = {128 + number: number for number in _TOLD_SO}


def main() -> None:
    """Run the command line, and end the process with a documented exit code."""
    try:
        code = _guarded()
    except KeyboardInterrupt:  # just before or after our own handlers stand
        code = _interrupted(signal.SIGINT)
    if code in _BY_SIGNAL:
        _end_by(_BY_SIGNAL[code])
    sys.exit(code)


def _guarded() -> int:
    _open_streams()
    with _Signals() as signals:
        try:
            from strop.app import app
            from strop.terminal import guard_libraries

            guard_libraries()
            signals.leave_ctrl_c_to_python()
            app()
            code = 0
        except SystemExit as end:
            code = _after(end, signals)
        except BaseException as error:
            code = _tell(error, signals)
        return _flush(code)


class _Ended(BaseException):
    """SIGTERM or SIGHUP, raised where it arrived, so that files that are half written are removed."""


class _Signals:
    """Within its context the signals that end a process are exceptions. Those that the caller ignores stay ignored.

    Training has handlers of its own, which save first.

    Attributes:
        received: The last signal.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in _TOLD_SO:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._raise)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave_ctrl_c_to_python(self) -> None:
        """Everything is imported: asyncio and Modal's client look for Python's own handler."""
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if first:  # a closing terminal sends several
            raise _Ended


def _open_streams() -> None:
    """Open what the caller has closed of standard input, output and error: the next file would take its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin, sys.stdout, sys.stderr = (
        stream if stream is not None else open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 (for good)
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text at all
            stream.reconfigure(errors="backslashreplace")


def _end_by(number: signal.Signals) -> NoReturn:
    """End the process as a signal would, but for Ctrl-C, which has an exit code of its own."""
    for each in _TOLD_SO:
        signal.signal(each, signal.SIG_IGN)  # a second one would be a traceback of whatever runs at exit
    atexit._run_exitfuncs()
    if number == signal.SIGINT:  # sys.exit would wait for threads; and Python itself makes a signal of some
        os._exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)  # whoever started us sees the signal: a launcher retries those
    os._exit(128 + number)


def _after(end: SystemExit, signals: _Signals) -> int:
    """The exit code of a command that ended by itself."""
    causes = list(_chain(end))
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        return _quietly()
    if signals.received is not None:
        return _interrupted(signals.received)
    if end.code == 130 or any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return _interrupted(signal.SIGINT)
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
        return 1
    return end.code or 0


def _tell(error: BaseException, signals: _Signals) -> int:
    """Say what ended the command; returns its exit code."""
    if isinstance(error, StropError):
        return _say(error)
    if signals.received is not None:
        return _interrupted(signals.received)
    if any(isinstance(cause, KeyboardInterrupt) for cause in _chain(error)):  # a library may have wrapped it
        return _interrupted(signal.SIGINT)
    if isinstance(error, BrokenPipeError):
        return _quietly()
    known = _known(error)
    return _say(known) if known is not None else _bug(error)


def _known(error: BaseException) -> StropError | None:
    """What is no bug although nobody caught it, as one of our errors."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError("this machine's memory does not suffice; `strop plan` says what a run needs")
    if type(error).__name__ == "OutOfMemoryError":  # torch's; code that asks for much memory says itself what to do
        return OutOfMemoryError(
            f"the GPU's memory does not suffice: {str(error).partition('. ')[0]}. Is another program using it? "
            "`strop plan` says what a run needs; `nvidia-smi` what is free"
        )
    if isinstance(error, RecursionError):
        return RecipeError("something that was given is nested too deeply to be read: make it flatter")
    if isinstance(error, UnicodeEncodeError):
        name = shown_name(error.object)
        return RecipeError(f"{name}: not every character of this can be written as {error.encoding}; name it otherwise")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return RecipeError("an argument or a key holds a NUL character, which no file's name can have; remove it")
    if isinstance(error, OSError) and error.filename is None and (why := _output_error(b"\n")):
        return StorageError(f"standard output cannot be written: {why}")
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, before Python 3.13
        return RecipeError(f"{shown_name(error)}: {os.strerror(errno.ELOOP)}; name the file itself")
    return of_system(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it came from."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        if (found := rest.pop()) is not None and id(found) not in seen:
            seen.add(id(found))
            rest += [found.__cause__, found.__context__]
            yield found


def _say(error: StropError) -> int:
    from strop.commands import console

    with suppress(OSError, ValueError, SystemExit):  # standard error may be gone too
        console.error(error)
    return error.exit_code


def _interrupted(number: signal.Signals) -> int:
    with suppress(OSError, ValueError):
        print(f"\n{_TOLD_SO[number]}", file=sys.stderr)
    return 128 + number


def _bug(error: BaseException) -> int:
    import traceback

    from strop.terminal import message

    with suppress(OSError, ValueError):
        print(message("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        print(f"error: this is a bug in strop. Please report it, with the lines above: {ISSUES}", file=sys.stderr)
    return StropError.exit_code


def _quietly() -> int:
    """The reader of our output has gone, as with `| head`."""
    _discard_output()
    return 0


def _flush(code: int) -> int:
    """Write out what standard output still holds: Python would report a failure at its exit, and by code 120."""
    why = _output_error()
    if why is None:
        return code
    _discard_output()
    if why == os.strerror(errno.EPIPE):
        return code
    return code or _say(StorageError(f"standard output cannot be written: {why}"))


def _output_error(more: bytes = b"") -> str | None:
    """Why standard output cannot be written, if it cannot; what failed may have been dropped, so `more` tries again."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), more)
    except io.UnsupportedOperation:  # someone has put another object there
        return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _discard_output() -> None:
    """Point standard output at /dev/null: what it buffers would fail again at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
