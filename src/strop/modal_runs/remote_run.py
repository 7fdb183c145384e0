"""A run on Modal as data: what launcher and attempt tell each other, where files are, and the local modal.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strop.errors import CheckpointError, RecipeError
from strop.run.durable import make_folder, replace_file

UPLOADED = "uploaded:"
"""Prefix of every name in a job's recipe that refers to a file or folder on the inputs Volume."""

DATA_VOLUME, RUNS_VOLUME, CACHE_VOLUME = "strop-data", "strop-runs", "strop-cache"
RECORD_FILE = "modal.json"


@dataclass(frozen=True)
class TrainingJob:
    """A run to start or resume.

    Attributes:
        run_id: Name of the run's folder on the Volume; the same recipe and data always get the same one.
        recipe: `Recipe.model_dump(mode="json")`, with `UPLOADED` names.
        gpu: The GPU requested, such as H200 or H100:2.
        timeout: Seconds after which Modal ends an attempt.
    """

    run_id: str
    recipe: dict[str, Any]
    gpu: str
    timeout: int


@dataclass(frozen=True)
class Outcome:
    """The state of a run after an attempt that should not be repeated.

    Attributes:
        exit_code: Exit code of `strop train`; see `strop.errors`.
        attempt: How many attempts the run has had.
        superseded: A newer attempt took over the run, and this one stopped without writing.
    """

    exit_code: int
    attempt: int
    superseded: bool = False


@dataclass(frozen=True)
class Places:
    """Where the Volumes are mounted."""

    root: Path = Path("/strop")

    @property
    def data(self) -> Path:
        """Uploaded files."""
        return self.root / "data"

    @property
    def runs(self) -> Path:
        """Run folders, by run id."""
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        """Anything that can be made or downloaded again."""
        return self.root / "cache"


@dataclass(frozen=True)
class RemoteRun:
    """What modal.json says: all that is needed to find the run on Modal again.

    Attributes:
        run_id: Name of its folder on the Volume.
        volume: The Volume with that folder.
        app_id: The app of the last launch.
        call_ids: The function calls that worked on the run, newest last.
        gpu: The GPU that the last call requested.
    """

    run_id: str
    volume: str
    app_id: str
    call_ids: tuple[str, ...]
    gpu: str


def run_folder(run_id: str) -> str:
    """A run's folder on the runs Volume; the attempts keep their own files next to it."""
    return f"{run_id}/run"


def files_list(run_id: str) -> str:
    """The file on the runs Volume that lists sizes and hashes of a run's files."""
    return f"{run_id}/files.json"


def write_record(folder: Path, run: RemoteRun) -> None:
    """Write modal.json to a local run folder."""
    make_folder(folder)
    replace_file(folder / RECORD_FILE, json.dumps(asdict(run), indent=2).encode() + b"\n")


def read_record(folder: Path) -> RemoteRun:
    """Read modal.json from a local run folder.

    Raises:
        RecipeError: The run was not started on Modal.
        CheckpointError: modal.json is damaged.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        raise RecipeError(
            f"{folder} is not a run on Modal: it has no {RECORD_FILE}. Start one with: strop train ... --on modal"
        )
    try:
        found = json.loads(path.read_bytes())
        return RemoteRun(**{**found, "call_ids": tuple(found["call_ids"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Repeat the same `strop train ... --on modal` in an empty folder to find the "
            "run again"
        ) from error
