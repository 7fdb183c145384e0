"""A worker process and the two pipes to it: a line of JSON asks, a line of JSON answers."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from strop.errors import StropError

_PATIENCE = 20.0
"""Seconds that a worker may take to end by itself."""
_LAST_LINES = 12
"""Lines of the log that an error message shows."""


class WorkerFailed(Exception):
    """The worker could not do what it was asked; `what` is the kind of failure."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Worker:
    """A module of strop run by itself, with a job to read; a context manager that leaves no process behind.

    Args:
        module: Its name.
        job: The file with its job.
        folder: Where it works; everything that it prints goes to `log` there.
        environment: Variables that it has beside this process's.

    Attributes:
        log: The file with its output.
    """

    def __init__(self, module: str, job: Path, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "worker.log"
        # The working folder is another, so that what libraries write there does not litter the user's.
        inherited = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        paths = [str(Path(__file__).parents[2]), *inherited]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(job.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
                cwd=folder,
                start_new_session=True,  # Ctrl-C on the terminal is for this process to answer
                text=True,
                encoding="utf-8",
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:  # nobody waits for what it is doing
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Ask it to end, and see that it does; then its memory is free."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer.

        Raises:
            WorkerFailed: It says why not.
            StropError: It has died.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died; what it said last is still to be read
            self._process.stdin.write(json.dumps({"ask": what, **details}) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; raises what `ask` does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StropError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if answer["answer"] == "failed":
            raise WorkerFailed(answer["what"], answer["message"])
        return answer

    def last_words(self) -> str:
        """The end of its log, indented, and where the whole of it is."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) + f"\nIts whole output is in {self.log}."

    def _obituary(self) -> str:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the training process {how}. Its last lines:\n{self.last_words()}"
