"""strop: fine-tune a language model on your own rows with LoRA.

    import strop

    run = strop.train(strop.load_recipe("demo", {"train.max_steps": 20}))
    print(strop.evaluate(run).difference["nll"])

Importing strop loads neither torch nor pydantic; names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from strop.errors import (
    BudgetReached,
    CheckpointError,
    CloudError,
    DataError,
    EndpointError,
    Interrupted,
    ModelError,
    NumericsError,
    OutOfMemoryError,
    ParityError,
    RankLost,
    RecipeError,
    StorageError,
    StropError,
)

if TYPE_CHECKING:
    from strop.commands.chat import chat
    from strop.commands.check import check
    from strop.commands.evaluate import evaluate
    from strop.commands.export import export
    from strop.commands.plan import plan
    from strop.commands.report import report
    from strop.commands.run import Run
    from strop.commands.train import train
    from strop.recipe import Recipe, list_recipes, load_recipe
    from strop.run.reporter import Reporter

__version__ = "0.1.0"

__all__ = [
    "BudgetReached",
    "CheckpointError",
    "CloudError",
    "DataError",
    "EndpointError",
    "Interrupted",
    "ModelError",
    "NumericsError",
    "OutOfMemoryError",
    "ParityError",
    "RankLost",
    "Recipe",
    "RecipeError",
    "Reporter",
    "Run",
    "StorageError",
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

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name
    _HOMES = {
        "Recipe": "strop.recipe",
        "Reporter": "strop.run.reporter",
        "Run": "strop.commands.run",
        "chat": "strop.commands.chat",
        "check": "strop.commands.check",
        "evaluate": "strop.commands.evaluate",
        "export": "strop.commands.export",
        "list_recipes": "strop.recipe",
        "load_recipe": "strop.recipe",
        "plan": "strop.commands.plan",
        "report": "strop.commands.report",
        "train": "strop.commands.train",
    }

    def __getattr__(name: str) -> Any:
        """A public name, from its module (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__() -> list[str]:
        """The public names, loaded or not."""
        return sorted([*__all__, "__version__"])
