"""A run folder, as the commands take and return it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from strop.errors import CheckpointError, RecipeError
from strop.recipe import Recipe, load_recipe
from strop.resolve import nearest_sibling
from strop.run.adapter import fault
from strop.run.folder import RunFolder
from strop.run.manifest import Manifest
from strop.run.records import Record, read_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.data.prompts import TemplateName


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not; its layout is described in `strop.run.folder`.

    Attributes:
        path: The folder; text is taken as a path.

    Raises:
        RecipeError: It is no path.
    """

    path: Path

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | PathLike):
            raise RecipeError(f"path: a {type(self.path).__name__} is not the path of a run folder")
        object.__setattr__(self, "path", Path(self.path))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it was resolved when the run began.

        Raises:
            RecipeError: The folder is not a run's.
        """
        if not (self.path / "recipe.yaml").exists():
            meant = "" if self.path.exists() else nearest_sibling(self.path)
            raise RecipeError(
                f"{self.path} is not a run folder: it has no recipe.yaml (`strop runs` lists runs){meant}"
            )
        return load_recipe(str(self.path / "recipe.yaml"))

    @property
    def adapter_path(self) -> Path:
        """The PEFT adapter folder."""
        return self.path / "adapter"

    @property
    def manifest(self) -> Manifest:
        """The contents of run.json.

        Raises:
            RecipeError: The run has not begun.
            CheckpointError: It cannot be read.
        """
        return RunFolder(self.path).begun

    @property
    def template(self) -> TemplateName:
        """The template that its rows were rendered in, from run.json.

        Raises:
            RecipeError: The run has not begun.
        """
        found = self.manifest.template
        if found is None:
            raise RecipeError(
                f"{self.path}: run.json has no `template`; train the recipe again with another train.output_dir"
            )
        return cast("TemplateName", found)

    def metrics(self) -> list[Record]:
        """Every step and evaluation so far, in order.

        Raises:
            RecipeError: The folder is not a run's.
            StropError: A line before the last is not a record.
        """
        if not (self.path / "metrics.jsonl").exists():
            _ = self.recipe  # raises where this is not a run folder
        return read_metrics(self.path / "metrics.jsonl")

    def require_adapter(self, note: Callable[[str], None] = lambda line: None) -> None:
        """See that the run has finished and that its adapter is what it wrote.

        Args:
            note: Told that the run's recipe is not what it was.

        Raises:
            RecipeError: It has none yet.
            CheckpointError: It is damaged or gone.
        """
        _ = self.recipe  # raises where this is not a run folder
        manifest = self.manifest
        if changed := RunFolder(self.path).recipe_changed:
            note(changed)
        if manifest.status != "finished" and not manifest.adapter:
            raise RecipeError(f"{self.path} has no adapter yet; `strop train {self.path}` resumes it")
        if found := fault(RunFolder(self.path)):
            raise CheckpointError(
                f"{found}. `strop train {self.path}` makes the adapter again from its last checkpoint"
            )
