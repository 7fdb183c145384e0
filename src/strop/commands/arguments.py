"""Arguments that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Place(StrEnum):
    """Where a model is trained or served."""

    here = "here"
    modal = "modal"


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe's name.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, such as train.max_steps=60."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
