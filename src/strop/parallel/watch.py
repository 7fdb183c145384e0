"""Heartbeats: a rank that was stopped or hangs is found by the others, also while they wait in a GPU's sum for it."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from strop.errors import RankLost
from strop.terminal import message

LOST_AFTER = 20.0
"""Seconds without a heartbeat after which a rank that trains counts as lost."""
LOADING = 600.0
"""The same while it loads: a slow disk that is read through mapped memory keeps Python's other threads from running."""
_EVERY = 1.0


class Watch(threading.Thread):
    """Sends this rank's heartbeat, and ends this process when another rank's stays out.

    The main thread may be waiting for a GPU that waits for the lost rank; nothing but the end of the process ends that.
    """

    def __init__(self, store: Store, rank: int, ranks: int, end: Callable[[Sequence[int]], None]) -> None:
        """Watch, once started.

        Args:
            store: A connection of its own: another thread may be waiting on the first one.
            rank: This one.
            ranks: How many there are; each has sent one heartbeat before anyone watches (`beat`).
            end: Called with the ranks that are lost; ends the process.
        """
        super().__init__(name="strop-watch", daemon=True)
        self._store, self._rank, self._ranks, self._end = store, rank, ranks, end
        self._over, self._patience = threading.Event(), LOADING

    def trains(self) -> None:
        """From now on the others may expect this rank's heartbeats soon."""
        self._patience = LOST_AFTER

    def run(self) -> None:
        """Beat and look until `stop`."""
        others = [rank for rank in range(self._ranks) if rank != self._rank]
        seen: dict[int, tuple[bytes, float]] = dict.fromkeys(others, (f"{LOADING} 0".encode(), time.monotonic()))
        count = 0
        while not self._over.wait(_EVERY):
            count += 1
            try:
                beat(self._store, self._rank, self._patience, count)
                beats = self._store.multi_get([_key(rank) for rank in others])
            except RuntimeError:  # the store has gone, and rank 0 or the launcher with it
                if not self._over.is_set():
                    self._end([0])
                return
            now = time.monotonic()
            for rank, found in zip(others, beats, strict=True):
                if found != seen[rank][0]:
                    seen[rank] = (found, now)
            if lost := [rank for rank, (found, at) in seen.items() if now - at > _patience(found)]:
                self._end(lost)
                return

    def stop(self) -> None:
        """The ranks are about to end by themselves."""
        self._over.set()


def beat(store: Store, rank: int, patience: float = LOADING, count: int = 0) -> None:
    """Send a heartbeat, which says within how many seconds the next one comes."""
    store.set(_key(rank), f"{patience} {count}")


def _patience(found: bytes) -> float:
    return float(found.split()[0])


def end_process(lost: Sequence[int], resume: str) -> None:
    """Say which ranks are lost, and end this process at once."""
    names = ", ".join(f"rank {rank}" for rank in lost)
    with suppress(OSError, ValueError):
        print(message(f"error: no sign of life of {names}, which has ended or hangs. {resume}"), file=sys.stderr)
    os._exit(RankLost.exit_code)


def _key(rank: int) -> str:
    return f"beat/{rank}"
