"""What a tracker is told, and the recipe's names of those there are."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strop.errors import RecipeError

MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""A tracker -> the module that its extra installs."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        id: The same for all attempts, from run.json.
        step: Where this attempt resumes; 0 at the beginning.
        recipe: Plain data. Recipes hold no secrets, and even the names of Modal secrets are dropped.
    """

    id: str
    name: str
    folder: Path
    step: int
    recipe: Mapping[str, Any]


class Tracker(Protocol):
    """A run in a tracker. Any method may raise or block; the caller handles both."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Enter the values after a step."""

    def close(self) -> None:
        """Hand over what is still held."""


def require(names: Sequence[str]) -> None:
    """Refuse trackers whose extra is not installed.

    Raises:
        RecipeError: Names them, with the command that installs them.
    """
    missing = [name for name in names if importlib.util.find_spec(MODULES[name]) is None]
    if missing:
        raise RecipeError(
            f"train.report_to={', '.join(missing)} is not installed: pip install 'strop[{','.join(missing)}]'"
        )


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Begin the run in a tracker, or resume it."""
    tracker: Tracker = importlib.import_module(f"strop.run.trackers.{name}").open_run(run)
    return tracker
