"""One core for llama.cpp, which takes a thread for each core that its process may use.

Its threads wait for each other by spinning. With another test process on the same cores, a model of two layers kept
them busy for ten times as long as it computed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_core() -> Iterator[None]:
    """This process and those that it starts keep to one core; each of pytest's workers to another."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
