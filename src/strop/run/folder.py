"""The run folder: everything about one run, in one place, readable without strop.

    runs/demo/
      recipe.yaml        the recipe as resolved when the run began
      run.json           the manifest: status, versions, device, fingerprints of data, recipe and base model
      metrics.jsonl      a line for each step and each evaluation
      samples.jsonl      the same held-out questions answered at each evaluation
      checkpoints/       step-00000010/ ...: what a run resumes from
      adapter/           the result, as PEFT writes it, with a model card (README.md)
      evaluation.json    base beside tuned, once `strop evaluate` has run
      report.html        all of this as one page, written at the end and by `strop report`
      plan.json          what `strop plan` measured here before the run began
      unsloth/           with train.engine unsloth: its process's job, and worker.log with its output
      run.lock           the process that is writing here; also the sign that the folder is strop's

Nothing but `adapter/` is needed to use the result.
"""

import fcntl
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strop import __version__
from strop.digest import sha256_of_file
from strop.errors import CheckpointError, RecipeError, StorageError
from strop.run.durable import is_alive, make_folder, replace_file, sweep, writing
from strop.run.lenient import fit
from strop.run.manifest import KeptEstimate, Manifest, Status
from strop.run.sealed import read_sealed, write_sealed

_RUN = "run"
"""The key of evaluation.json that has the run's id."""
_WITHOUT_MANIFEST = (
    "Put it back from a copy, or remove it and train the same recipe: the run resumes from its newest checkpoint"
)


class RunFolder:
    """One run's folder. Created on `claim`, which holds it for this process alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.samples_path = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Create the folder if need be and keep other processes out of it.

        The lock is the kernel's, so it goes with the process however that ends. What a killed process left half
        written is deleted.

        Raises:
            RecipeError: Another process has it, it holds something that is no run, or there can be no such folder.
            StorageError: The disk is full or fails, or nothing may be written there.
        """
        with writing(self.path, "train.output_dir"):
            make_folder(self.path)
            self._refuse_strangers()
            lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(lock)
            sweep(self.path)
            sweep(self.checkpoints)
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(lock, 0)  # nobody is writing: a disk that is full for good can keep run.json at `running`
            with suppress(OSError):
                os.close(lock)

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"another strop process (pid {self._writer() or 'unknown'}) is writing to {self.path}; "
                "wait for it, or give another train.output_dir"
            ) from None
        with writing(self.path / "run.lock"):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())

    @property
    def manifest(self) -> Manifest | None:
        """The contents of run.json; None before the run has begun.

        Raises:
            CheckpointError: It is damaged.
            StorageError: It cannot be read.
        """
        path = self.path / "run.json"
        if not path.exists():
            return None
        try:
            contents = read_sealed(path)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). {_WITHOUT_MANIFEST}") from error
        if not isinstance(contents, dict):
            raise CheckpointError(f"{path} is not a run's manifest. {_WITHOUT_MANIFEST}")
        return Manifest.from_json(contents) if contents else None

    @property
    def begun(self) -> Manifest:
        """The manifest of a run that has begun.

        Raises:
            RecipeError: It has not, or this is no run's folder.
            CheckpointError: It cannot be read.
        """
        manifest = self.manifest
        if manifest is None:
            raise RecipeError(f"{self.path} is not a run folder: it has no run.json (`strop runs` lists runs)")
        return manifest

    @property
    def status(self) -> Status | None:
        """What run.json says, but `interrupted` where the process was killed; None before the run began."""
        manifest = self.manifest
        status = manifest.status if manifest else None
        return "interrupted" if status == "running" and not is_alive(self._writer()) else status

    def begin_attempt(
        self,
        *,
        device: str,
        chosen: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        num_trainable: int,
        num_steps: int,
    ) -> list[str]:
        """Write into run.json that this process starts or resumes the run.

        Args:
            device: Name of the device, as the driver gives it.
            chosen: What was chosen for this device and can change the last digits of a result, such as the precision.
            fingerprints: What `refuse_changes` compares, by what it is of.
            num_trainable: Parameters that are trained.
            num_steps: Updates from beginning to end.

        Returns:
            Versions, devices and choices that differ from the attempt before, one a line. The run continues, but its
            result is no longer the same bits as that of an undisturbed one.
        """
        before = (self.manifest or Manifest()).to_json()
        environment = {**_environment(device), **chosen}
        changes = [
            f"{name} was {before[name]} and is {value}: results may differ in the last digits from here on"
            for name, value in environment.items()
            if before.get(name, value) != value
        ]
        known = Manifest.from_json(before | environment)
        self._write_manifest(
            replace(
                known,
                run_id=known.run_id or uuid.uuid4().hex[:12],
                created=known.created or now(),
                status="running",
                attempts=known.attempts + 1,
                recipe=known.recipe if known.attempts else self._recipe_digest(),
                fingerprints=fingerprints,
                num_trainable=num_trainable,
                num_steps=num_steps,
            )
        )
        return changes

    def set_status(self, status: Status) -> None:
        """Write into run.json how the run is."""
        self.update(lambda manifest: replace(manifest, status=status))

    def update(self, change: Callable[[Manifest], Manifest]) -> None:
        """Replace run.json, atomically, by what `change` makes of it."""
        self._write_manifest(change(self.manifest or Manifest()))

    def _write_manifest(self, manifest: Manifest) -> None:
        write_sealed(self.path / "run.json", manifest.to_json())

    def write_recipe(self, text: str) -> None:
        """Put recipe.yaml in place."""
        replace_file(self.path / "recipe.yaml", text.encode())

    def write_plan(self, plan: KeptEstimate) -> None:
        """Put plan.json in place."""
        write_sealed(self.path / "plan.json", asdict(plan))

    @property
    def plan(self) -> KeptEstimate | None:
        """The contents of plan.json; None where there is none.

        Raises:
            StorageError: It cannot be read, or is not what strop wrote.
        """
        path = self.path / "plan.json"
        if not path.exists():
            return None
        try:
            found = fit(KeptEstimate, read_sealed(path))
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{path} is damaged ({error})") from error
        return found

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Put evaluation.json in place, marked as this run's."""
        write_sealed(self.path / "evaluation.json", {**result, _RUN: self.begun.run_id})

    def read_evaluation(self) -> Any:
        """The contents of evaluation.json; None where there is none.

        Raises:
            StorageError: It cannot be read, is not what strop wrote, or is of another run.
        """
        path = self.path / "evaluation.json"
        if not path.exists():
            return None
        try:
            found = read_sealed(path)
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{path} is damaged ({error})") from error
        with suppress(CheckpointError):  # run.json is damaged, which is told where it is read
            ours = (self.manifest or Manifest()).run_id
            if isinstance(found, dict) and found.get(_RUN, ours) != (ours or found.get(_RUN)):
                raise StorageError(f"{path} is of another run")
        return found

    @property
    def recipe_changed(self) -> str | None:
        """That recipe.yaml is no longer what it was when the run began, as a sentence; None if it is.

        People may edit it, as where a base model has moved: it is obeyed, and rows, base, adapter and checkpoints are
        held against it by their own marks.
        """
        manifest = self.manifest
        if manifest is None or manifest.recipe in (None, self._recipe_digest()):
            return None
        return f"{self.path / 'recipe.yaml'} was changed after the run began; it is read as it is now"

    def _recipe_digest(self) -> str | None:
        with suppress(FileNotFoundError):
            return sha256_of_file(self.path / "recipe.yaml")
        return None

    def _refuse_strangers(self) -> None:
        """Refuse a folder that is in use for something else; a run.lock shows that a run was begun here."""
        if any((self.path / name).exists() for name in ("run.json", "run.lock")):
            return
        stranger = min((path.name for path in self.path.iterdir()), default=None)
        if stranger is not None:
            raise RecipeError(
                f"train.output_dir={self.path} holds files that are not a run's ({stranger}); "
                "name a folder that is empty or does not exist"
            )

    def _writer(self) -> int | None:
        """The process that last held the lock, as run.lock names it."""
        try:
            return int((self.path / "run.lock").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def _environment(device: str) -> dict[str, str]:
    """What can change a result in its last digits while the recipe stays the same."""
    return {
        "strop": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "platform": platform.platform(),
        "device": device,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
