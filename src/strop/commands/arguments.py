"""What Python users may give as an argument: what is obvious is taken, and anything else refused by its name."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from strop.commands.run import Run
from strop.errors import RecipeError
from strop.recipe import Recipe, load_recipe


def as_recipe(given: Recipe | str | Path) -> Recipe:
    """A recipe: from `load_recipe`, or what that takes.

    Raises:
        RecipeError: It is neither, or has errors.
    """
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str | Path):
        return load_recipe(given)
    raise RecipeError(f"recipe={_shown(given)}: give what strop.load_recipe returns, or the path of a recipe")


def as_run(given: Run | str | Path) -> Run:
    """A run: what `strop.train` returns, or the path of its folder.

    Raises:
        RecipeError: It is neither.
    """
    if isinstance(given, Run):
        return given
    if isinstance(given, str | Path):
        return Run(Path(given))
    raise RecipeError(f"run={_shown(given)}: give what strop.train returns, or the path of a run folder")


def as_path(name: str, given: str | Path | None) -> Path | None:
    """A path, or None where none is given.

    Raises:
        RecipeError: It is no path.
    """
    if given is not None and not isinstance(given, str | PathLike):
        raise RecipeError(f"{name}={_shown(given)}: give a path")
    return None if given is None else Path(given)


def require_choice(name: str, given: object, choices: Collection[str | None]) -> None:
    """See that an argument is one of its choices; the command line sees to that itself.

    Raises:
        RecipeError: It is not.
    """
    if given not in choices:
        raise RecipeError(f"{name}={_shown(given)}: it is one of {', '.join(map(str, choices))}")


def require_number(name: str, given: Any, least: float, whole: bool = True) -> None:
    """See that an argument is a number that can be meant.

    Raises:
        RecipeError: It is not.
    """
    kind = Integral if whole else Real
    if isinstance(given, bool) or not isinstance(given, kind) or not least <= float(given) < math.inf:
        what = "a whole number" if whole else "a number"
        raise RecipeError(f"{name}={_shown(given)}: give {what} of at least {least:g}")


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."
