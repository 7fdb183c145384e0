"""A recipe -> a run on Modal, followed to its end or left to itself."""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.errors import CheckpointError, Interrupted, OutOfMemoryError, RecipeError, StropError
from strop.gpus import larger
from strop.modal_runs.follow import CallLog, Emit, cloud_errors, is_passing, to_console, wait
from strop.modal_runs.interrupts import held_back, run
from strop.modal_runs.job import RUNS_VOLUME, Job, Outcome
from strop.modal_runs.pull import pull
from strop.modal_runs.record import RECORD_FILE, RemoteRun, read_record, write_record
from strop.modal_runs.upload import Inputs, collect, upload_files
from strop.recipe import Recipe, load_recipe
from strop.run.durable import replace_file

if TYPE_CHECKING:
    import modal

PATIENCE = 600.0
"""Seconds to wait for a GPU where the recipe names another type too."""

LONGEST_STOP = 30.0
"""Seconds to go on printing the log of a run that was told to stop."""

Note = Callable[[str], None]


def launch(recipe: Recipe, note: Note, *, detach: bool = False) -> Outcome | None:
    """Start a run, or carry it on; follow it, fetch its folder and return how it ended.

    The app is always a detached one: when this process or its connection dies, the run goes on, and `strop logs` and
    `strop pull` find it.

    Args:
        recipe: From `load_recipe`.
        note: Told of what happens.
        detach: Return None as soon as the run has been handed over.

    Raises:
        RecipeError, DataError: What would stop the run before it begins.
        CheckpointError: The local run folder belongs to another run.
        Interrupted: The run was stopped and can go on.
        CloudError: Modal cannot be reached, or refused.
    """
    from strop.modal_runs.modal_app import app

    return _Launch(recipe, note, to_console, lambda: app.run(detach=True)).run(detach)


def run_entrypoint(recipe: str, overrides: list[str]) -> None:
    """What `modal run -m strop.modal_runs.modal_app` does: the app runs already, and Modal's client prints the log.

    Raises:
        SystemExit: With the run's exit code, where it is not 0.
    """
    try:
        loaded = load_recipe(recipe, overrides)
        outcome = _Launch(loaded, print, lambda text, source: None, nullcontext).run()
    except StropError as error:
        print(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    if outcome is not None and outcome.exit_code:
        raise SystemExit(outcome.exit_code)


def run_id_of(recipe: Recipe, inputs: Inputs) -> str:
    """The run folder's name and a digest of all that decides the result: the same recipe and data are the same run."""
    identity = json.dumps([recipe.identity(), inputs.digest], sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", recipe.output_dir.name).strip("-")[:60] or "run"
    return f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


class _Launch:
    """One recipe's way to Modal.

    Args:
        recipe: What to train.
        note: Told of what happens here.
        emit: Given the run's log.
        opened: The context in which the app can be called.
    """

    def __init__(
        self, recipe: Recipe, note: Note, emit: Emit, opened: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._recipe, self._note, self._emit, self._opened = recipe, note, emit, opened
        self._folder = recipe.output_dir
        self._inputs = collect(recipe)
        self._record = _known_run(self._folder, run_id_of(recipe, self._inputs))

    def run(self, detach: bool = False) -> Outcome | None:
        """Upload, start, and unless `detach` go through the recipe's GPUs until one carries the run to its end."""
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
                self._note(f"no {gpu} in {PATIENCE / 60:.0f} minutes; trying {remaining[0]}")
            elif outcome.exit_code == OutOfMemoryError.exit_code and (fitting := larger(remaining, gpu)):
                self._note(f"out of memory on {gpu} (exit code {OutOfMemoryError.exit_code}); trying {fitting[0]}")
                remaining = fitting
            else:
                self._bring_home(outcome)
                return outcome
            call = None

    def _running_call(self) -> "modal.FunctionCall[dict[str, Any]] | None":
        """The last launch's call, if it is still going on: a second one would only get in its way."""
        import modal

        if not self._record.call_ids:
            return None
        call = modal.FunctionCall.from_id(self._record.call_ids[-1])
        try:
            with suppress(modal.exception.InputCancellation):
                call.get(timeout=0)
        except TimeoutError:
            self._note(f"{self._record.run_id} is running already, on {self._record.gpu}")
            return call
        except Exception as error:
            if is_passing(error):
                raise
        return None  # however it ended: the run goes on in a new call

    def _start(self, gpu: str) -> "modal.FunctionCall[dict[str, Any]]":
        """Spawn a call on this type of GPU and write down where to find it."""
        import modal

        from strop.modal_runs.modal_app import app, train

        section = self._recipe.modal
        job = Job(self._record.run_id, self._inputs.recipe.model_dump(mode="json"), gpu, section.timeout)
        secrets = [modal.Secret.from_name(name) for name in section.secrets]
        self._note(f"{job.run_id} on {gpu}; where the image is new, building it takes some minutes")
        call = None
        try:
            with cloud_errors(), held_back(self._opened()):
                function = train.with_options(gpu=gpu, timeout=section.timeout, secrets=secrets)
                call = function.spawn(asdict(job))
                calls = (*self._record.call_ids, call.object_id)
                self._record = replace(self._record, app_id=app.app_id or "", call_ids=calls, gpu=gpu)
                write_record(self._folder, self._record)
                replace_file(self._folder / "recipe.yaml", self._recipe.to_yaml().encode())
        except KeyboardInterrupt:
            if call is None:
                raise
            raise self._stop(call) from None
        return call

    def _follow(self, call: "modal.FunctionCall[dict[str, Any]]", patience: float | None) -> Outcome | None:
        """Wait for the call's end; it is cancelled where it never began, or a person stops it."""
        log = CallLog(call, self._emit)
        try:
            outcome = run(wait(log, patience))
        except KeyboardInterrupt:
            stopped = self._stop(call)
            with suppress(StropError, OSError):  # its last lines, and how it ended, which we know
                run(asyncio.wait_for(wait(log), LONGEST_STOP))
            raise stopped from None
        if outcome is None:
            with cloud_errors():
                call.cancel()
        return outcome

    def _stop(self, call: "modal.FunctionCall[dict[str, Any]]") -> Interrupted:
        """Stop the run, and say how it goes on."""
        with suppress(OSError, SystemExit):  # Ctrl-C ends the other side of a pipe too, and Rich leaves for that
            self._note("stopping: the run saves a checkpoint and ends")
        with cloud_errors():
            call.cancel()
        return Interrupted(f"stopped. Go on with the same command, or fetch what there is: strop pull {self._folder}")

    def _bring_home(self, outcome: Outcome) -> None:
        """Fetch the run folder, whatever the end was, unless there was none or another launch has the run."""
        if outcome.superseded:
            self._note("a newer launch has this run; this one has stopped")
            return
        if outcome.exit_code:
            self._note(f"the run ended with exit code {outcome.exit_code}")
        pull(self._folder, self._note, must_exist=outcome.exit_code == 0)


def _known_run(folder: Path, run_id: str) -> RemoteRun:
    """The run as the local folder knows it, or a new one; the folder must not be another run's.

    Raises:
        RecipeError, CheckpointError: It is.
    """
    if (folder / RECORD_FILE).exists():
        known = read_record(folder)
        if known.run_id != run_id:
            raise CheckpointError(
                f"{folder} belongs to the run {known.run_id} on Modal, and this would be {run_id}: the recipe, the "
                "data or the base model has changed. Put it back, or start a new run with another train.output_dir"
            )
        return known
    if folder.is_dir() and any(folder.iterdir()):
        raise RecipeError(f"train.output_dir={folder} holds something already; name a folder that is empty or new")
    return RemoteRun(run_id, RUNS_VOLUME, "", (), "")
