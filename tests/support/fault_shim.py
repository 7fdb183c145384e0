"""Faults of the file system under a whole process: fault_shim.c, compiled here, armed in a process that preloads it."""

import ctypes
import mmap
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntFlag, auto
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("fault_shim.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")
Mode = Literal["count", "kill", "fail once", "fail from", "short", "delay"]
_MODES: tuple[Mode, ...] = ("count", "kill", "fail once", "fail from", "short", "delay")


class Kind(IntFlag):
    """Of a call; the order is that of fault_shim.c."""

    READ = auto()
    OPEN = auto()
    WRITE = auto()
    SYNC = auto()
    RENAME = auto()
    MKDIR = auto()
    UNLINK = auto()
    CLOSE = auto()
    TRUNCATE = auto()
    LINK = auto()
    ATTRIBUTES = auto()


CHANGES = ~Kind.READ
"""Everything but opening a file to read it."""
NEEDS_SPACE = Kind.OPEN | Kind.WRITE | Kind.SYNC | Kind.RENAME | Kind.MKDIR | Kind.CLOSE | Kind.TRUNCATE | Kind.LINK
NEEDS_PERMISSION = Kind.OPEN | Kind.RENAME | Kind.MKDIR | Kind.UNLINK | Kind.LINK | Kind.ATTRIBUTES


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call of some kinds, on paths under the trial's folder or `root`."""

    mode: Mode
    kinds: Kind
    error: int = 0
    at: int = 1
    root: str | None = None


class State(ctypes.Structure):
    """What a trial counted; the layout is that of fault_shim.c."""

    _fields_ = [
        ("calls", ctypes.c_long),
        ("hits", ctypes.c_long),
        ("of_kind", ctypes.c_long * len(Kind)),
        ("hit", ctypes.c_char * 512),
    ]


def compile_shim(folder: Path) -> Path:
    """The library to preload."""
    assert COMPILER is not None
    library = folder / "fault_shim.so"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *options, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def shared_state() -> State:
    """Counters that outlive the child which is killed."""
    return State.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))


def arm(state: State, fault: Fault, root: Path) -> None:
    """Let a fault strike this process from now on; it has preloaded the shim."""
    ctypes.CDLL(None).fault_arm(
        ctypes.byref(state),
        (fault.root or str(root)).encode(),
        _MODES.index(fault.mode),
        int(fault.kinds) & (1 << len(Kind)) - 1,
        fault.error,
        ctypes.c_long(fault.at),
    )


def set_clock_wrong(seconds: int) -> None:
    """Let this process's clock be so far ahead, or behind if it is negative."""
    ctypes.CDLL(None).fault_skew(ctypes.c_long(seconds))
