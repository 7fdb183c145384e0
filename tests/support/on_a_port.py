"""A server of `strop serve` behind a real port of this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from strop.serving.server import bind
from waiting import PATIENCE, until


@contextmanager
def on_a_port(server: uvicorn.Server) -> Iterator[int]:
    """Run the server in a thread; yields its port, and ends it."""
    with bind("127.0.0.1", 0) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        until(lambda: server.started)
        yield taken.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE)
