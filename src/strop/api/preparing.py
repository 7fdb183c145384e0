"""Before a run: a first recipe, and a recipe's model and data read, vetted and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from strop.errors import RecipeError
from strop.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.data.audit import AuditReport
    from strop.data.dataset import Dataset
    from strop.model.config import DecoderConfig

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What `strop init` names where the user names nothing: small enough for any machine."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's model folder and data, vetted and counted: what training reads and `strop check` reports on."""

    model_folder: Path
    config: DecoderConfig
    data: Dataset
    report: AuditReport


def starter_recipe(train_file: str, model: str | None = None) -> str:
    """The text of a first recipe for someone's rows.

    Raises:
        DataError: The rows cannot be found, or their shape is not known.
    """
    from strop.data.sources import detect_format, find_files
    from strop.recipe.reader import starter_recipe as text

    detect_format(find_files([train_file]))
    return text(train_file, model or DEFAULT_MODEL)


def check(recipe: Recipe, note: Callable[[str], None] = lambda line: None) -> Prepared:
    """Read, tokenise and audit a recipe's data and see that LoRA finds its modules; needs no GPU.

    Args:
        recipe: From `load_recipe`.
        note: Told of what takes a while, such as converting a GGUF file.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
    """
    from strop.data.audit import refuse

    prepared = prepare(recipe, note)
    refuse(prepared.report)
    return prepared


def prepare(recipe: Recipe, note: Callable[[str], None] = lambda line: None, needs_weights: bool = True) -> Prepared:
    """`check` without refusing what the report finds wrong; the model's folder may lack weights if none are needed."""
    from strop.data.audit import audit
    from strop.data.dataset import open_dataset
    from strop.model.checkpoint.locate import locate_model
    from strop.model.checkpoint.nf4 import refuse_unasked
    from strop.model.checkpoint.vet import vet_model_folder
    from strop.model.config import read_config
    from strop.model.lora import resolve_targets

    folder = locate_model(recipe.model.model_name_or_path, recipe.model.revision, note, needs_weights)
    settings = vet_model_folder(folder, needs_weights)
    refuse_unasked(settings, recipe.model.load_in_4bit)
    config = read_config(settings)
    resolve_targets(config, recipe.lora.target_modules)
    if recipe.model.max_seq_length > config.max_positions:
        asked = recipe.model.max_seq_length
        raise RecipeError(f"model.max_seq_length={asked}: this model reads at most {config.max_positions} tokens")
    data = open_dataset(recipe.data, folder, recipe.model.max_seq_length, recipe.train.seed)
    return Prepared(folder, config, data, audit(data.train, data.template, data.validation))
