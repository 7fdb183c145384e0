"""Several ranks of this machine as processes: of a function, or of a command of strop.

They are forked from a process that has loaded torch and has computed nothing, so that a rank starts in a tenth of a
second. Nobody watches over them, as `srun` would not; what torchrun adds is tried with torchrun.
"""

import multiprocessing
import os
import pickle
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from strop.parallel.join import meet
from strop.parallel.place import here
from tiny_runs import environment
from waiting import PATIENCE

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("strop.commands.train", "strop.training.loop", "strop.training.ranks", "strop.parallel.process_meeting"),
        *("strop.data.dataset", "strop.data.audit", "strop.evaluation.samples", "strop.evaluation.together"),
        *("strop.exporting.adapter", "strop.exporting.prompting", "strop.forecast.prediction", "transformers"),
    ]
)


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(team, *arguments)` returns on each rank; it and they can be pickled."""
    pipes, processes = [], []
    for variables in _variables(count):
        ours, theirs = _SERVER.Pipe(duplex=False)
        processes.append(_started(_function, variables, theirs, function, arguments))
        theirs.close()
        pipes.append(ours)
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


def strop_on_ranks(
    count: int, arguments: Sequence[str], folder: Path, log: Path, lost_after: float
) -> list[ForkServerProcess]:
    """Start a command of strop on several ranks, in a folder; what they print goes to `log`."""
    return [_started(_command, each, list(arguments), folder, log, lost_after) for each in _variables(count)]


def _started(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = _SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def _variables(count: int) -> list[dict[str, str]]:
    """What torchrun would set for each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**common, **meeting_point, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _function(
    variables: Mapping[str, str], answer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= variables
    try:
        meeting = meet(here(), "start again")
        found = function(meeting.form({}), *arguments)
        answer.send_bytes(pickle.dumps(found))  # not as torch would, in memory that goes with this process
        meeting.ended(None)
    except Exception as error:
        answer.send_bytes(pickle.dumps(error))


def _command(variables: Mapping[str, str], arguments: list[str], folder: Path, log: Path, lost_after: float) -> None:
    from strop.cli import main
    from strop.evaluation import samples
    from strop.parallel import watch

    os.environ |= environment(folder / "cache") | variables
    os.chdir(folder)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    samples.MAX_NEW_TOKENS, watch.LOST_AFTER, sys.argv = 4, lost_after, ["strop", *arguments]
    main()
