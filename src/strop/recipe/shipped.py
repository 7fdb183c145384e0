"""Recipe files by name: those that come with strop, and the first recipe for someone's rows."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from strop.errors import RecipeError
from strop.recipe.wording import nearest, show
from strop.secrets import kind_of

SHIPPED = Path(__file__).parents[1] / "recipes"
_HELD_OUT = "  validation_split_percentage: {}   # held out to measure on; or name a validation_file"
_NOT_HELD_OUT = (
    "  # validation_file: FILE.jsonl   # too few rows to hold some out: name a file with others to measure on"
)
_DOCUMENTS = "  long_samples: split         # a document over max_seq_length becomes several samples; or: cut, drop"
_EVALUATIONS = "  eval_steps: 50                   # measure the held-out rows every so many steps"


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


def starter_recipe(
    train_files: str | Sequence[str],
    model: str,
    held_out: int | None = 5,
    about_rows: Sequence[str] = (),
    has_documents: bool = False,
) -> str:
    """The text of a first recipe for someone's rows, with every line explained; it loads without changes.

    Args:
        train_files: A file, glob or hub id, or several.
        model: The base model.
        held_out: Percentage of the rows to hold out; None for none.
        about_rows: What was found in the rows, as comments.
        has_documents: Whether some rows are documents, which need not be cut.
    """
    names = [train_files] if isinstance(train_files, str) else train_files
    if secret := kind_of("", [*names, model]):
        raise RecipeError(
            f"the model or a file looks like {secret}, which no recipe may hold; put it in the environment"
        )
    files = ", ".join(map(yaml_scalar, names))
    lines = {
        "MODEL": yaml_scalar(model),
        "TRAIN_FILE": files if len(names) == 1 else f"[{files}]",
        "HELD_OUT": _HELD_OUT.format(held_out) if held_out else _NOT_HELD_OUT,
        "ABOUT_ROWS": "\n".join(f"  # {' '.join(line.split())}" for line in about_rows),
        "DOCUMENTS": _DOCUMENTS if has_documents else "",
        "EVALUATIONS": _EVALUATIONS if held_out else "",
    }
    template = (SHIPPED / "starter.yaml.txt").read_text(encoding="utf-8")
    text = re.sub("|".join(lines), lambda match: lines[match[0]], template)
    return re.sub(r"\n\n+(?=  )", "\n", text).rstrip("\n") + "\n"


def yaml_scalar(text: str) -> str:
    """A string as one line of YAML."""
    plain = yaml.safe_dump(text, width=10**6).removesuffix("...\n").rstrip("\n")
    return yaml.safe_dump(text, default_style='"', width=10**6).rstrip("\n") if "\n" in plain else plain


def is_run_folder(name_or_path: str | Path) -> bool:
    """Whether this is a folder with the recipe of a run, to which it belongs."""
    return os.path.isfile(os.path.join(name_or_path, "recipe.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file that a path, a run folder or the name of a shipped recipe means.

    Raises:
        RecipeError: There is none.
    """
    path = Path(name_or_path)
    if is_run_folder(path):
        return path / "recipe.yaml"
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
