"""Starts a recipe's run on Modal, and follows it to its end or leaves it running."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import CheckpointError, Interrupted, OutOfMemoryError, RecipeError, StropError
from strop.gpus import larger
from strop.modal_runs.follow import CallLog, Emit, cloud_errors, held_back, is_passing, run, to_console, wait
from strop.modal_runs.pull import pull
from strop.modal_runs.remote_run import (
    RECORD_FILE,
    RUNS_VOLUME,
    Outcome,
    RemoteRun,
    TrainingJob,
    read_record,
    write_record,
)
from strop.modal_runs.upload import Inputs, collect, upload_files
from strop.recipe import Recipe
from strop.run.durable import replace_file

if TYPE_CHECKING:
    import modal

PATIENCE = 600.0
"""Seconds to wait for a GPU before trying the recipe's next type."""

LONGEST_STOP = 30.0
"""Seconds to keep printing the log of a run that was told to stop."""

Note = Callable[[str], None]


def launch(recipe: Recipe, note: Note, *, detach: bool = False) -> Outcome | None:
    """Start or resume a run, follow it, fetch its folder and return how it ended.

    The app is always detached: if this process or its connection dies, the run continues, and `strop logs` and
    `strop pull` find it.

    Args:
        recipe: A recipe from `load_recipe`.
        note: Called with a line about each step.
        detach: Return None as soon as the run has been handed over to Modal.

    Raises:
        RecipeError, DataError: Something would stop the run before it begins.
        CheckpointError: The local run folder belongs to another run.
        Interrupted: The run was stopped and can be resumed.
        CloudError: Modal cannot be reached, or refused.
    """
    from strop.modal_runs.modal_app import app

    return Launch(recipe, note, to_console, lambda: app.run(detach=True)).run(detach)


def run_id_of(recipe: Recipe, inputs: Inputs) -> str:
    """The run folder's name and a hash of all that decides the result: the same recipe and data are the same run."""
    identity = json.dumps([recipe.identity(), inputs.digest], sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", recipe.output_dir.name).strip("-")[:60] or "run"
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


class Launch:
    """Launches one recipe.

    Args:
        recipe: What to train.
        note: Called with a line about each step on this machine.
        emit: Called with the run's log.
        opened: Makes the context in which the app can be called.
    """

    def __init__(
        self, recipe: Recipe, note: Note, emit: Emit, opened: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        _refuse_trackers(recipe)
        self._recipe, self._note, self._emit, self._opened = recipe, note, emit, opened
        self._folder = recipe.output_dir
        self._inputs = collect(recipe)
        self._record = _known_run(self._folder, run_id_of(recipe, self._inputs))

    def run(self, detach: bool = False) -> Outcome | None:
        """Upload, start, and unless `detach` try the recipe's GPUs until one completes the run."""
        from strop.modal_runs.modal_app import data_volume

        with cloud_errors():
            upload_files(self._inputs.files, data_volume, self._note)
            call, gpu = self._running_call(), self._record.gpu
        remaining = [other for other in self._recipe.modal.gpu if call is None or other != gpu]
        while True:
            if call is None:
                gpu = remaining.pop(0)
                call = self._start(gpu)
            if detach:
                self._note(f"handed over: strop logs {self._folder} --follow, strop pull {self._folder}")
                return None
            outcome = self._follow(call, PATIENCE if remaining else None)
            if outcome is None:
                self._note(f"no {gpu} became free in {PATIENCE / 60:.0f} minutes; trying {remaining[0]}")
            elif outcome.exit_code == OutOfMemoryError.exit_code and (fitting := larger(remaining, gpu)):
                self._note(f"out of memory on {gpu} (exit code {OutOfMemoryError.exit_code}); trying {fitting[0]}")
                remaining = fitting
            else:
                self._bring_home(outcome)
                return outcome
            call = None

    def _running_call(self) -> "modal.FunctionCall[dict[str, Any]] | None":
        """The last launch's call if it is still running: a second one would only get in its way."""
        import modal

        if not self._record.call_ids:
            return None
        call = modal.FunctionCall.from_id(self._record.call_ids[-1])
        try:
            with suppress(modal.exception.InputCancellation):
                call.get(timeout=0)
        except TimeoutError:
            self._note(f"{self._record.run_id} is already running, on {self._record.gpu}")
            return call
        except Exception as error:
            if is_passing(error):
                raise
        return None  # however the call ended, a new one resumes the run

    def _start(self, gpu: str) -> "modal.FunctionCall[dict[str, Any]]":
        """Spawn a call on this type of GPU and record where to find it."""
        import modal

        from strop.modal_runs.modal_app import app, train

        section = self._recipe.modal
        job = TrainingJob(self._record.run_id, self._inputs.recipe.model_dump(mode="json"), gpu, section.timeout)
        secrets = [modal.Secret.from_name(name) for name in section.secrets]
        self._note(f"{job.run_id} on {gpu}; building a new image takes a few minutes")
        call, page = None, ""
        try:
            with cloud_errors(), held_back(self._opened()):
                function = train.with_options(gpu=gpu, timeout=section.timeout, secrets=secrets)
                call, page = function.spawn(asdict(job)), app.get_dashboard_url()
                calls = (*self._record.call_ids, call.object_id)
                self._record = replace(self._record, app_id=app.app_id or "", call_ids=calls, gpu=gpu)
                write_record(self._folder, self._record)
                replace_file(self._folder / "recipe.yaml", self._recipe.to_yaml().encode())
        except KeyboardInterrupt:
            if call is None:
                raise
            raise self._stop(call) from None
        self._note(f"its page at Modal: {page}")
        return call

    def _follow(self, call: "modal.FunctionCall[dict[str, Any]]", patience: float | None) -> Outcome | None:
        """Wait for the call to end; cancel it if it never began, or if the user stops it."""
        log = CallLog(call, self._emit)
        try:
            outcome = run(wait(log, patience))
        except KeyboardInterrupt:
            stopped = self._stop(call)
            with suppress(StropError, OSError):  # for its last lines; how it ended is known
                run(asyncio.wait_for(wait(log), LONGEST_STOP))
            raise stopped from None
        if outcome is None:
            with cloud_errors():
                call.cancel()
        return outcome

    def _stop(self, call: "modal.FunctionCall[dict[str, Any]]") -> Interrupted:
        """Stop the run; returns the error that says how to resume it."""
        with suppress(OSError):  # Ctrl-C ends the other side of a pipe too
            self._note("stopping: the run saves a checkpoint and ends")
        with cloud_errors():
            call.cancel()
        return Interrupted(
            f"stopped. Resume with the same command, or fetch what is there so far: strop pull {self._folder}"
        )

    def _bring_home(self, outcome: Outcome) -> None:
        """Fetch the run folder, however the run ended, unless there is none or another launch owns the run."""
        if outcome.superseded:
            self._note("a newer launch owns this run; this one has stopped")
            return
        if outcome.exit_code:
            self._note(f"the run ended with exit code {outcome.exit_code}")
        pull(self._folder, self._note, must_exist=outcome.exit_code == 0)


def _refuse_trackers(recipe: Recipe) -> None:
    """Refuse here what would end the run there: its image has no tracker, nor has this account's key for one."""
    if recipe.train.report_to:
        raise RecipeError(
            f"train.report_to={', '.join(recipe.train.report_to)}: runs on Modal have no trackers; set "
            "train.report_to=none, and follow the run with `strop logs` or on its page"
        )


def _known_run(folder: Path, run_id: str) -> RemoteRun:
    """The run that the local folder records, or a new one.

    Raises:
        RecipeError, CheckpointError: The folder belongs to another run.
    """
    if (folder / RECORD_FILE).exists():
        known = read_record(folder)
        if known.run_id != run_id:
            raise CheckpointError(
                f"{folder} belongs to the run {known.run_id} on Modal, but this would be {run_id}: the recipe, the "
                "data or the base model has changed. Undo the change, or start a new run with another train.output_dir"
            )
        return known
    if folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"train.output_dir={folder} is not empty; choose an empty or new folder")
    return RemoteRun(run_id, RUNS_VOLUME, "", (), "")
