"""A whole run as one frozen object, read from YAML: what to train, on which rows, how, and where."""

from strop.recipe.reader import load_recipe
from strop.recipe.recipe import Recipe, differences
from strop.recipe.schema import (
    EXPONENT,
    SEVEN_MODULES,
    DataFile,
    DataSection,
    LoraSection,
    ModalSection,
    ModelSection,
    Section,
    TrainSection,
)
from strop.recipe.shipped import list_recipes, recipe_text

__all__ = [
    "EXPONENT",
    "SEVEN_MODULES",
    "DataFile",
    "DataSection",
    "LoraSection",
    "ModalSection",
    "ModelSection",
    "Recipe",
    "Section",
    "TrainSection",
    "differences",
    "list_recipes",
    "load_recipe",
    "recipe_text",
]
