"""How many threads compute here, and how they wait for each other; set before torch is loaded.

OpenMP's threads wait by spinning. If another program has the processor that one of them needs, the others burn theirs
until it is back, at every product of every layer.
"""

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

_WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""GNU's OpenMP, which torch has on Linux, spins 10,000 times (0.1 ms) instead of 300,000 and then sleeps. LLVM's and
Intel's, which torch has elsewhere, sleep after 1 ms instead of 200; not measured. The results have the same bits. Two
cores, SmolLM2's matrices, with nearly all of the machine (others had a 250th of its shares): 900 tokens take 3% longer,
8 tokens 4%; if threads sleep at once, 8 tokens take 1.7 times as long. Two steps of the demo beside four busy programs
and more: 70 to 75 s, more than 197 s with 300,000 spins, 52 s if threads sleep at once."""

_COUNTS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Of torch's and numpy's threads, and of the tokenizers'."""


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait, and no more of them compute than the container's quota allows.

    What the user has set stays. If torch is loaded already, nothing is changed: it has read the environment, and the
    process belongs to whoever loaded it. Without a quota the number stays torch's, because it decides in which order
    sums are made. Child processes inherit all of it.
    """
    if "torch" in sys.modules:
        return
    if environment.keys().isdisjoint({"OMP_WAIT_POLICY", *_WAITING}):
        environment.update(_WAITING)
    if processors() < _allowed():
        for name in _COUNTS:
            environment.setdefault(name, str(processors()))


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may use at a time: by its affinity and its container's quota, at least 1.

    Args:
        root: Where /proc and /sys are.
    """
    return max(1, min([_allowed(), *(math.ceil(quota) for quota in _quotas(root))]))


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The limits, in processors, of this process's control group and of those around it; of both versions."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mounted = root / "sys/fs/cgroup" / controllers
            # In a container the group can be named as the host sees it: then only the mount itself is there.
            for folder in {mounted / group.strip("/"), *(mounted / group.strip("/")).parents}:
                if folder.is_relative_to(mounted):
                    yield from _quota_in(folder)


def _quota_in(folder: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        allowed, period = (folder / "cpu.max").read_text().split()
        yield float(allowed) / float(period)  # "max" is no number
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        if quota > 0:  # -1 is no limit
            yield quota / int((folder / "cpu.cfs_period_us").read_text())
