"""A function on several ranks: processes with gloo between them, as torchrun starts them."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from strop.parallel.meeting import meet
from strop.parallel.place import here
from waiting import PATIENCE

_STARTED_FROM = multiprocessing.get_context("forkserver")  # which has torch loaded, and has computed nothing
_STARTED_FROM.set_forkserver_preload(["strop.training.engine", "strop.parallel.process_meeting"])


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(team, *arguments)` returns on each rank; it and they can be pickled."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        ours, theirs = _STARTED_FROM.Pipe(duplex=False)
        process = _STARTED_FROM.Process(target=_rank, args=(rank, count, port, theirs, function, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        answers = [pickle.loads(pipe.recv_bytes()) if pipe.poll(PATIENCE) else EOFError("no answer") for pipe in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _rank(
    rank: int, count: int, port: int, answer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
        **{name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        meeting = meet(here(), "start again")
        found = function(meeting.form({}), *arguments)
        answer.send_bytes(pickle.dumps(found))  # not as torch would, in memory that goes with this process
        meeting.ended(None)
    except Exception as error:
        answer.send_bytes(pickle.dumps(error))
