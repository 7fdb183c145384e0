"""A recipe's model folder and data, read, vetted and counted: what every command that reads rows begins with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from strop.errors import RecipeError
from strop.model.pretrained.folder import ModelFolder, open_model
from strop.model.pretrained.locate import fingerprint_folder, fingerprint_tokenizer
from strop.recipe import Recipe
from strop.run.reporter import Reporter

if TYPE_CHECKING:
    from strop.data.audit import AuditReport
    from strop.data.dataset import Dataset


@dataclass(frozen=True)
class Prepared:
    """A recipe, its model folder and data: what training reads and `strop check` reports on."""

    recipe: Recipe
    model: ModelFolder
    data: Dataset
    report: AuditReport

    @property
    def facts(self) -> dict[str, str]:
        """What must be the same on all ranks of a run, by what it is of."""
        recipe = json.dumps(self.recipe.identity(), sort_keys=True)
        return self.fingerprints | {"recipe": hashlib.sha256(recipe.encode()).hexdigest()}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What a run was started from, by what it is of: it is resumed only from the same."""
        held_out = self.data.validation
        return {
            "base model": fingerprint_folder(self.model.path),
            "tokenizer": fingerprint_tokenizer(self.model.path),
            "training data": self.data.train.fingerprint,
            "held-out data": held_out.fingerprint if held_out else "none",
            "stop tokens": hashlib.sha256(repr(sorted(self.data.template.stop_ids)).encode()).hexdigest(),
        }


def prepare(recipe: Recipe, reporter: Reporter, needs_weights: bool = True) -> Prepared:
    """Read, tokenise and audit a recipe's data, and see that its model can be trained; needs no GPU.

    What the audit finds wrong is in the report, whose `refuse` raises it.

    Args:
        recipe: From `load_recipe`.
        reporter: Told of what takes a while, such as converting a GGUF file.
        needs_weights: False accepts a model folder without weights, and downloads none.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
    """
    with reporter.waiting("loading torch and transformers"):
        from strop.data.audit import audit
        from strop.data.dataset import open_dataset
        from strop.model.lora import resolve_targets

    model = open_model(recipe.model, reporter.note, needs_weights)
    resolve_targets(model.config, recipe.lora.target_modules)
    asked, limit = recipe.model.max_seq_length, model.config.max_positions
    if asked > limit:
        raise RecipeError(f"model.max_seq_length={asked}: this model reads at most {limit} tokens")
    with reporter.waiting("reading and tokenising the rows") as seen:
        data = open_dataset(recipe.data, model.path, asked, recipe.train.seed, seen)
    with reporter.waiting("looking at every sample"):
        return Prepared(recipe, model, data, audit(data.distinct, data.template, data.validation, epoch=data.train))
