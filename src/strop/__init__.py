"""strop: fine-tune a language model on your own rows with LoRA.

    import strop

    run = strop.train(strop.load_recipe("demo", {"train.max_steps": 20}))
    print(strop.evaluate(run).tuned)

Importing strop imports no torch; the functions do when they are called.
"""

from strop.api import Run, chat, check, evaluate, export, plan, report, train
from strop.errors import (
    BudgetReached,
    CheckpointError,
    DataError,
    Interrupted,
    ModelError,
    NumericsError,
    OutOfMemoryError,
    RecipeError,
    StropError,
)
from strop.recipe import Recipe, list_recipes, load_recipe

__version__ = "0.1.0"

__all__ = [
    "BudgetReached",
    "CheckpointError",
    "DataError",
    "Interrupted",
    "ModelError",
    "NumericsError",
    "OutOfMemoryError",
    "Recipe",
    "RecipeError",
    "Run",
    "StropError",
    "chat",
    "check",
    "evaluate",
    "export",
    "list_recipes",
    "load_recipe",
    "plan",
    "report",
    "train",
]
