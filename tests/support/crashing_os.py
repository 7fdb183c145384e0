"""The file calls of `os`, counted, and stopped at the n-th: SQLite's crash test (its src/test6.c) in Python.

A task is run in a forked child, once for each n = 1, 2, 3 ... until it ends without having made n calls, so
every point between two calls is tried. What the child leaves on the disk is what a crash there leaves.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

Mode = Literal["stop", "tear", "fail", "lose", "lose half"]
MODES: tuple[Mode, ...] = ("stop", "tear", "fail", "lose", "lose half")
"""What happens at the n-th call.

    stop       the process ends before it
    tear       a write is done by half, any other call whole; then the process ends
    fail       it raises ENOSPC, once, and the process goes on
    lose       the power fails before it: files lose the data, and folders the entries, that were not fsynced
    lose half  as `lose`, but each unsynced file keeps the first half of its bytes

`lose` is stricter than most file systems: an entry survives only an fsync of its folder, as POSIX has it.
"""

COUNTED = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
_FINISHED, _CRASHED, _FINISHED_AFTER_FAILURE, _REPORTED, _ESCAPED = 0, 101, 102, 103, 104


class CrashingOs:
    """Installed in a child: patches `os` there, for good."""

    def __init__(self, root: Path, mode: Mode, stop_at: int) -> None:
        self._root, self._mode, self._stop_at = root, mode, stop_at
        self.calls = 0
        self._real = {name: getattr(os, name) for name in COUNTED}
        self._paths: dict[int, str] = {}
        self._unsynced_files: set[int] = set()
        self._unsynced_entries: list[tuple[str, str, str | None]] = []  # folder, entry, what it was renamed from

    def install(self) -> None:
        for name in COUNTED:
            setattr(os, name, self._wrap(name))

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = self._real[name]
        remember = getattr(self, f"_after_{name}", None)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._stop_at:
                self._crash(name, args, kwargs)
            result = real(*args, **kwargs)
            if remember is not None and "dir_fd" not in kwargs:
                remember(result, *args)
            return result

        return counted

    def _crash(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._mode == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._mode == "tear":
            if name == "write":
                args = (args[0], args[1][: len(args[1]) // 2])
            self._real[name](*args, **kwargs)
        if self._mode in ("lose", "lose half"):
            self._lose_unsynced()
        os._exit(_CRASHED)

    def _after_open(self, descriptor: int, path: Any, flags: int, *_: Any) -> None:
        self._paths[descriptor] = os.path.abspath(path)
        if flags & os.O_CREAT:
            self._after_mkdir(None, path)

    def _after_mkdir(self, _: None, path: Any, *__: Any) -> None:
        folder, entry = os.path.split(os.path.abspath(path))
        self._unsynced_entries.append((folder, entry, None))

    def _after_rename(self, _: None, old: Any, new: Any) -> None:
        folder, entry = os.path.split(os.path.abspath(new))
        self._unsynced_entries.append((folder, entry, os.path.basename(old)))

    def _after_write(self, _: int, descriptor: int, __: Any) -> None:
        self._unsynced_files.add(os.fstat(descriptor).st_ino)

    def _after_fsync(self, _: None, descriptor: int) -> None:
        self._unsynced_files.discard(os.fstat(descriptor).st_ino)
        folder = self._paths.get(descriptor)
        self._unsynced_entries = [entry for entry in self._unsynced_entries if entry[0] != folder]

    def _lose_unsynced(self) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        for path in self._root.rglob("*"):
            if path.stat().st_ino in self._unsynced_files:
                os.truncate(path, path.stat().st_size // 2 if self._mode == "lose half" else 0)
        for folder, entry, old in reversed(self._unsynced_entries):
            path = Path(folder, entry)
            if old is not None and path.exists():
                os.rename(path, Path(folder, old))
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def crash_everywhere(
    task: Callable[[Path, Callable[[], None]], None],
    prepared: Path,
    scratch: Path,
    mode: Mode,
    reported: type[Exception],
) -> Iterator[tuple[int, Path, bool]]:
    """Run `task(folder, done)` on fresh copies of a folder, crashing at each call in turn.

    `task` calls `done()` at the point from which its result may not be lost. It may raise `reported`.

    Yields:
        n, the folder as the crash left it, and whether `done()` had been called.
    """
    number = 0
    while True:
        number += 1
        folder = scratch / f"{mode}-{number}"
        shutil.copytree(prepared, folder)
        status, done = _in_child(task, folder, mode, number, reported)
        assert status != _ESCAPED, f"{mode} at call {number}: another exception than {reported.__name__}"
        if status == _FINISHED:
            shutil.rmtree(folder)
            return
        yield number, folder, done
        shutil.rmtree(folder)


def _in_child(
    task: Callable[[Path, Callable[[], None]], None],
    folder: Path,
    mode: Mode,
    number: int,
    reported: type[Exception],
) -> tuple[int, bool]:
    read_end, write_end = os.pipe()
    write = os.write
    pid = os.fork()
    if pid == 0:
        status = _ESCAPED
        try:
            layer = CrashingOs(folder, mode, number)
            layer.install()
            task(folder, lambda: void(write(write_end, b"x")))
            status = _FINISHED if layer.calls < number else _FINISHED_AFTER_FAILURE
        except reported:
            status = _REPORTED
        finally:
            os._exit(status)
    os.close(write_end)
    done = os.read(read_end, 1) == b"x"
    os.close(read_end)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), done


def void(_: object) -> None:
    """Turn an expression into a statement, for a lambda that returns nothing."""
