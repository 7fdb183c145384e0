"""Recipe files by name: those that come with strop, and the first recipe for someone's rows."""

import os
import re
from pathlib import Path

import yaml

from strop.errors import RecipeError
from strop.recipe.wording import nearest, show

SHIPPED = Path(__file__).parents[1] / "recipes"


def list_recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        RecipeError: There is none with this name.
    """
    if name not in list_recipes():
        raise RecipeError(f"there is no shipped recipe {name!r}; shipped recipes are {', '.join(list_recipes())}")
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def starter_recipe(train_file: str, model: str) -> str:
    """The text of a first recipe for someone's rows, with every line explained; it loads without changes."""
    template = (SHIPPED / "starter.yaml.txt").read_text(encoding="utf-8")
    quote = {"MODEL": yaml_scalar(model), "TRAIN_FILE": yaml_scalar(train_file)}
    return re.sub("MODEL|TRAIN_FILE", lambda match: quote[match[0]], template)


def yaml_scalar(text: str) -> str:
    """A string as one line of YAML."""
    plain = yaml.safe_dump(text, width=10**6).removesuffix("...\n").rstrip("\n")
    return yaml.safe_dump(text, default_style='"', width=10**6).rstrip("\n") if "\n" in plain else plain


def find_recipe(name_or_path: str) -> Path:
    """The file that a path or the name of a shipped recipe means.

    Raises:
        RecipeError: There is none.
    """
    path = Path(name_or_path)
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if name_or_path in shipped and not path.is_file():
        return SHIPPED / f"{name_or_path}.yaml"
    if os.path.isdir(path):  # unlike Path.is_dir, this is False for a name too long to exist
        raise RecipeError(f"{path} is a folder but not a run folder; give a recipe file or one of {', '.join(shipped)}")
    if not os.path.exists(path):
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if os.path.isdir(path.parent) else []
        raise RecipeError(
            f"there is no recipe file {show(name_or_path)}, and no shipped recipe with that name"
            f"{nearest(name_or_path, [*shipped, *siblings]) or '.'} Shipped recipes: {', '.join(shipped)}"
        )
    return path
