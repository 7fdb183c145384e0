"""modal.json in a local run folder: all that is needed to find the run on Modal again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from strop.errors import CheckpointError, RecipeError
from strop.run.durable import make_folder, replace_file

RECORD_FILE = "modal.json"


@dataclass(frozen=True)
class RemoteRun:
    """A run on Modal.

    Attributes:
        run_id: Names its folder on the Volume.
        volume: The Volume that holds it.
        app_id: The app of the last launch.
        call_ids: The function calls that carried it on, the newest last.
        gpu: The type that the last one asked for.
    """

    run_id: str
    volume: str
    app_id: str
    call_ids: tuple[str, ...]
    gpu: str


def write_record(folder: Path, run: RemoteRun) -> None:
    """Put modal.json in place."""
    make_folder(folder)
    replace_file(folder / RECORD_FILE, json.dumps(asdict(run), indent=2).encode() + b"\n")


def read_record(folder: Path) -> RemoteRun:
    """The run that a local folder belongs to.

    Raises:
        RecipeError: It was not started on Modal.
        CheckpointError: modal.json is damaged.
    """
    path = folder / RECORD_FILE
    if not path.exists():
        raise RecipeError(
            f"{folder} is no run on Modal: it has no {RECORD_FILE}. Start one: strop train ... --on modal"
        )
    try:
        found = json.loads(path.read_bytes())
        return RemoteRun(**{**found, "call_ids": tuple(found["call_ids"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). The same `strop train ... --on modal` in an empty folder finds the run again"
        ) from error
