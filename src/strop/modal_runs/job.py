"""What a launcher asks of an attempt and what the attempt answers: plain values, for they travel between machines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

UPLOADED = "uploaded:"
"""Begins every name in a job's recipe that stands for a file or folder on the inputs Volume."""

DATA_VOLUME, RUNS_VOLUME, CACHE_VOLUME = "strop-data", "strop-runs", "strop-cache"


@dataclass(frozen=True)
class Job:
    """A run to be carried on.

    Attributes:
        run_id: Names the run's folder on the Volume; the same recipe and data give the same one.
        recipe: As `Recipe.model_dump(mode="json")` has it, with `UPLOADED` names.
        gpu: The type asked for, such as H200 or H100:2.
        timeout: Seconds after which Modal ends an attempt.
    """

    run_id: str
    recipe: dict[str, Any]
    gpu: str
    timeout: int


@dataclass(frozen=True)
class Outcome:
    """How a run stands after an attempt that is not to be made again.

    Attributes:
        exit_code: That of `strop train`; see `strop.errors`.
        attempt: How often the run has been begun or carried on.
        superseded: A newer attempt took the run over and this one stopped without writing.
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
        """What was uploaded."""
        return self.root / "data"

    @property
    def runs(self) -> Path:
        """Run folders, by run id."""
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        """What can be made or downloaded again."""
        return self.root / "cache"


def run_folder(run_id: str) -> str:
    """Where a run's folder is on the runs Volume; beside it is what the attempts need for themselves."""
    return f"{run_id}/run"


def files_list(run_id: str) -> str:
    """Where the sizes and hashes of a run's files are on the runs Volume."""
    return f"{run_id}/files.json"
