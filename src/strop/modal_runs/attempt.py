"""One attempt at a run, inside a container: starts `strop train` as a child process and watches it.

Plain Python without Modal: it takes folders and a `Storage`, so it runs anywhere.

    the child exits with any code but 75   the code is returned: the run is over and is not retried
    code 75, or death by a signal          Interrupted is raised: Modal makes another attempt
    this process gets SIGINT or SIGTERM    the child saves and exits; KeyboardInterrupt is raised, which Modal treats as
                                           a preemption: the same input starts again in another container
    the attempt's time is nearly over      the child saves and exits; Interrupted is raised, so attempts form a chain
    a newer attempt owns the run           the child is killed and nothing more is written
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from strop.digest import sha256_of_file
from strop.errors import Interrupted
from strop.modal_runs import prices as meter
from strop.modal_runs.fence import Fence, Storage, raise_fence
from strop.modal_runs.remote_run import UPLOADED, Outcome, Places, TrainingJob, files_list, run_folder
from strop.recipe import DataFile, Recipe
from strop.run.durable import replace_file

STROP = (sys.executable, "-m", "strop")
EXIT_INTERRUPTED = Interrupted.exit_code
LONGEST_SAVE = 300
"""Seconds before an attempt's time limit at which the child is stopped: enough for a step and a checkpoint."""
GRACE = 25
"""Seconds the child gets to save when this process is told to end; Modal allows 30 in all."""


@dataclass(frozen=True)
class Pace:
    """How often an attempt checks for new checkpoints and for the fence, in seconds."""

    checkpoints: float = 2.0
    fence: float = 30.0


def run_attempt(
    job: TrainingJob, places: Places, storage: Storage, pace: Pace = Pace(), program: tuple[str, ...] = STROP
) -> Outcome:
    """Start a run, or resume it from the newest checkpoint that verifies, until it ends or is stopped.

    Raises:
        Interrupted: Another attempt can continue the run.
        KeyboardInterrupt: This process was told to end.
    """
    started = time.time()
    storage.reload()
    fence = raise_fence(places.runs, job.run_id, storage)
    recipe = places.runs / job.run_id / "recipe.yaml"
    replace_file(recipe, _on_the_volume(job, places).to_yaml().encode())
    print(f"attempt {fence.attempt} of {job.run_id} on {job.gpu}", flush=True)
    child = subprocess.Popen([*program, "train", str(recipe)], env=_environment(job, started))
    deadline = started + job.timeout - min(LONGEST_SAVE, job.timeout / 4)
    with _signals_passed_on(child) as received, _ended_with_us(child, storage):
        attempt = _Attempt(child, places.runs / run_folder(job.run_id), fence, storage, pace, deadline)
        overtaken = attempt.watch()
    if overtaken:
        print(f"a newer attempt owns {job.run_id}; attempt {fence.attempt} stops without writing", flush=True)
        return Outcome(EXIT_INTERRUPTED, fence.attempt, superseded=True)
    _list_files(places.runs, job.run_id)
    storage.commit()
    return _judge(child.returncode, fence.attempt, attempt.is_out_of_time, received)


def _judge(code: int, attempt: int, is_out_of_time: bool, received: list[str]) -> Outcome:
    """Return a final result; raise for one that another attempt can improve."""
    if received and code != 0:  # any code: a process told to end before it trained anything exits with 130
        raise KeyboardInterrupt(f"{received[0]}: the run is saved and will resume in another container")
    if code >= 0 and code != EXIT_INTERRUPTED:
        return Outcome(code, attempt)
    if is_out_of_time:
        raise Interrupted("the attempt's time is over; the next one resumes from the checkpoint")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise Interrupted(f"strop train ended with {how}; the next attempt resumes from the newest checkpoint")


class _Attempt:
    """Watches the child."""

    def __init__(
        self, child: subprocess.Popen[bytes], run: Path, fence: Fence, storage: Storage, pace: Pace, deadline: float
    ) -> None:
        self._child = child
        self._checkpoints = run / "checkpoints"
        self._fence = fence
        self._storage = storage
        self._pace = pace
        self._deadline = deadline
        self.is_out_of_time = False

    def watch(self) -> bool:
        """Commit each new checkpoint until the child ends; returns True if a newer attempt took over meanwhile."""
        committed = self._saved()
        next_look = time.monotonic() + self._pace.fence
        while not self._has_ended():
            if time.monotonic() >= next_look:
                if self._fence.is_overtaken(self._storage):
                    self._child.kill()
                    self._child.wait()
                    return True
                next_look = time.monotonic() + self._pace.fence
            if not self.is_out_of_time and time.time() >= self._deadline:
                self.is_out_of_time = True
                self._child.terminate()
            if (saved := self._saved()) != committed and self._commit():
                committed = saved
        return self._fence.is_overtaken(self._storage)

    def _commit(self) -> bool:
        try:
            self._storage.commit()
        except OSError as error:
            print(f"could not commit the checkpoint ({error}); trying again", flush=True)
            return False
        return True

    def _has_ended(self) -> bool:
        try:
            self._child.wait(self._pace.checkpoints)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _saved(self) -> set[str]:
        """Names of the checkpoints; each gets its name only once it is complete."""
        return {path.name for path in self._checkpoints.glob("step-*")}


@contextmanager
def _signals_passed_on(child: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """Pass SIGINT and SIGTERM on to the child as SIGTERM; yields a list of the names of those received."""
    received: list[str] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        child.terminate()

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield received
        return
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _ended_with_us(child: subprocess.Popen[bytes], storage: Storage) -> Iterator[None]:
    """Never leave the child behind: whatever ends us, such as a cancelled call, the child saves first."""
    try:
        yield
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            with suppress(OSError):  # report what ended us, not this
                storage.commit()


def _on_the_volume(job: TrainingJob, places: Places) -> Recipe:
    """The job's recipe with the paths that uploaded files have here, and the run folder on the Volume."""

    def place(name: str) -> str:
        return str(places.data / name.removeprefix(UPLOADED)) if name.startswith(UPLOADED) else name

    def file(spec: str | DataFile) -> str | DataFile:
        return place(spec) if isinstance(spec, str) else spec.model_copy(update={"path": place(spec.path)})

    recipe = Recipe.model_validate(job.recipe)
    model = {"model_name_or_path": place(recipe.model.model_name_or_path)}
    data = {key: tuple(map(file, getattr(recipe.data, key))) for key in ("train_file", "validation_file")}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update=data),
            "train": recipe.train.model_copy(update={"output_dir": str(places.runs / run_folder(job.run_id))}),
        }
    )


def _environment(job: TrainingJob, started: float) -> dict[str, str]:
    """The child's environment: ours, plus what it needs to compute the cost."""
    return os.environ | {meter.GPU: job.gpu, meter.STARTED: f"{started:.3f}"}


def _list_files(runs: Path, run_id: str) -> None:
    """Write sizes and hashes of the run's files for `strop pull`; checkpoints have their own."""
    folder = runs / run_folder(run_id)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.lock"]
    listed: dict[str, Any] = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of_file(path), "size": path.stat().st_size}
        for path in files
        if path.relative_to(folder).parts[0] != "checkpoints"
    }
    replace_file(runs / files_list(run_id), json.dumps(listed, indent=1).encode())
