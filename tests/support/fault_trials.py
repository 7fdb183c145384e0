"""Commands of strop under faults, each in a fork of a process that has strop loaded: see `fault_server.py`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_shim import Fault
from tiny_runs import environment


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Attributes:
        status: Its exit status, negative for a signal; `hung` if it had to be killed.
        calls: File calls under its root by kind, in the order of `Kind`.
        hits: How many of them the fault struck.
        hit: The first of those.
        seconds: That it took.
        output: All that it printed.
    """

    status: int | str
    calls: list[int]
    hits: int
    hit: str
    seconds: float
    output: str


class FaultServer:
    """The process that forks a child for each trial."""

    def __init__(self, process: "subprocess.Popen[str]", scratch: Path) -> None:
        self._process, self._output = process, scratch / "output.txt"

    def run(
        self,
        folder: Path,
        arguments: Sequence[object],
        fault: Fault | None = None,
        *,
        here: bool = False,
        signals: Sequence[tuple[float, int]] = (),
        skew: int = 0,
    ) -> Answer:
        """Run a command in a folder, whose cache/ is strop's cache.

        Args:
            folder: Where; also the root of the fault.
            arguments: Of `strop`.
            fault: None for none.
            here: In the server itself, so that its later children have all that the command loads.
            signals: What to send it, each after so many seconds.
            skew: Seconds that its clock is ahead.
        """
        request = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "fault": asdict(fault) if fault else None,
            "output": str(self._output),
            "here": here,
            "signals": list(signals),
            "skew": skew,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        output = "" if here else self._output.read_text(encoding="utf-8", errors="replace")
        return Answer(**answer, output=output)


@contextmanager
def fault_server(library: Path, scratch: Path) -> Iterator[FaultServer]:
    """Start a server that has preloaded the shim."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]
    variables = environment(scratch / "cache") | {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(Path(__file__).with_name("fault_server.py"))]
    with (scratch / "server.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        )
        try:
            yield FaultServer(process, scratch)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


def fresh(folder: Path, prepared: Path) -> Path:
    """A folder for one trial: a copy of what is prepared."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(prepared, folder, symlinks=True))
