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
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strop import __version__
from strop.errors import CheckpointError, RecipeError, StropError
from strop.run.durable import make_folder, replace_file
from strop.run.lenient import fit, parse_json
from strop.run.manifest import KeptEstimate, Manifest, Status
from strop.run.records import EvalRecord, TrainRecord, base_and_adapter, read_metrics, seconds_of


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

        The lock is the kernel's, so it goes with the process however that ends.

        Raises:
            RecipeError: Another process has it, it cannot be written, or it holds something that is no run.
        """
        try:
            make_folder(self.path)
            self._refuse_strangers()
            lock = open(self.path / "run.lock", "a+", encoding="utf-8")  # noqa: SIM115 (held beyond this block)
        except OSError as error:
            raise RecipeError(
                f"train.output_dir={self.path} cannot be written: {error.strerror}; name another folder"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(
                    f"another strop process (pid {self._writer() or 'unknown'}) is writing to {self.path}; "
                    "wait for it, or give another train.output_dir"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @property
    def manifest(self) -> Manifest | None:
        """The contents of run.json; None before the run has begun.

        Raises:
            CheckpointError: It cannot be read.
        """
        path = self.path / "run.json"
        if not path.exists():
            return None
        try:
            contents = parse_json(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); give another train.output_dir") from error
        if not isinstance(contents, dict):
            raise CheckpointError(f"{path} is not a run's manifest; give another train.output_dir")
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
        return "interrupted" if status == "running" and not _is_alive(self._writer()) else status

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
        self._write("run.json", json.dumps(manifest.to_json(), indent=2).encode() + b"\n")

    def write_recipe(self, text: str) -> None:
        """Put recipe.yaml in place."""
        self._write("recipe.yaml", text.encode())

    def write_plan(self, plan: KeptEstimate) -> None:
        """Put plan.json in place."""
        self._write("plan.json", json.dumps(asdict(plan), indent=2).encode() + b"\n")

    @property
    def plan(self) -> KeptEstimate | None:
        """The contents of plan.json; None where there is none, or none that can be read."""
        try:
            return fit(KeptEstimate, parse_json((self.path / "plan.json").read_bytes()))
        except (OSError, ValueError, RecursionError):
            return None

    def write_evaluation(self, result: Mapping[str, Any]) -> None:
        """Put evaluation.json in place."""
        self._write("evaluation.json", json.dumps(result, indent=2, ensure_ascii=False).encode() + b"\n")

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

    def _write(self, name: str, data: bytes) -> None:
        try:
            replace_file(self.path / name, data)
        except OSError as error:
            raise StropError(f"{self.path / name} cannot be written: {error.strerror}") from error


def refuse_changes(stored: Mapping[str, str], current: Mapping[str, str], recipe_changes: Sequence[str]) -> None:
    """Refuse to continue a run whose inputs are not what they were.

    Args:
        stored: Fingerprints by what they are of, from the manifest.
        current: The same, as they are now.
        recipe_changes: Differences of the recipes that matter for the result, one a line.

    Raises:
        CheckpointError: Something differs; says what.
    """
    faults = [f"  recipe: {change}" for change in recipe_changes]
    faults += [
        f"  {name}: not the content that the run began with ({stored.get(name, 'none')[:12]} -> {mark[:12]})"
        for name, mark in {**dict.fromkeys(stored, "none"), **current}.items()
        if stored.get(name) != mark
    ]
    if faults:
        raise CheckpointError(
            "this run cannot be continued, because what it was started from has changed:\n"
            + "\n".join(faults)
            + "\nPut it back, or start a new run with another train.output_dir."
        )


def _environment(device: str) -> dict[str, str]:
    """What can change a result in its last digits while the recipe stays the same."""
    return {
        "strop": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "platform": platform.platform(),
        "device": device,
    }


def _is_alive(pid: int | None) -> bool:
    """Whether a process is there. Asking the lock would hold it for an instant, and turn away a run."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's, and alive
        return True
    return True


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What `strop runs` shows of a run; None where it is not known.

    Attributes:
        status: As `RunFolder.status`, or `damaged` where its files cannot be read.
        step: Updates made, of `num_steps`.
        loss: In training, of the last step.
        base_loss: The base model's on the held-out rows.
        eval_loss: The adapter's on them; of a run that has not ended, the last one.
        seconds: Of training, over all attempts.
        created: UTC, ISO 8601.
    """

    path: Path
    status: str
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    base_loss: float | None = None
    eval_loss: float | None = None
    seconds: float | None = None
    created: str | None = None


def list_runs(root: Path) -> list[RunSummary]:
    """The runs directly below a folder, by name, or the one that it is. A damaged run is listed as such.

    Raises:
        RecipeError: There is no such folder.
    """
    if not root.is_dir():
        raise RecipeError(f"there is no folder {root}; runs are in train.output_dir, by default runs/NAME")
    candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return [_summarise(path) for path in candidates if (path / "run.json").exists()]


def _summarise(path: Path) -> RunSummary:
    folder = RunFolder(path)
    try:
        manifest, status = folder.manifest, folder.status
        records = read_metrics(folder.metrics_path)
    except (StropError, OSError):
        return RunSummary(path, "damaged")
    steps = [record for record in records if isinstance(record, TrainRecord)]
    evals = [(record.step, record.eval_loss) for record in records if isinstance(record, EvalRecord)]
    base, adapter = base_and_adapter(evals, manifest.adapter_step if manifest else None)
    progress = manifest.progress if manifest else None
    return RunSummary(
        path=path,
        status=status or "unknown",
        step=steps[-1].step if steps else 0,
        num_steps=manifest.num_steps if manifest else None,
        loss=steps[-1].loss if steps else None,
        base_loss=base,
        eval_loss=adapter,
        seconds=progress.seconds if progress else seconds_of(steps),
        created=manifest.created if manifest else None,
    )
