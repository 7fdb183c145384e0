"""A whole run as one frozen object, and what of it determines the resulting weights."""

import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from strop.recipe.rules import contradictions
from strop.recipe.schema import (
    EXPONENT,
    DataFile,
    DataSection,
    LoraSection,
    ModalSection,
    ModelSection,
    Section,
    TrainSection,
)
from strop.resolve import expand
from strop.secrets import kind_of

_LONGEST_SHOWN = 200
_PLACE = {"path", "split", "subset"}


class _Dumper(yaml.SafeDumper):
    """Quotes text that strop's reader would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789."))


class Recipe(Section):
    """A whole run."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run folder; by default the file's name."""
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection
    train: TrainSection = TrainSection()
    modal: ModalSection = ModalSection()
    notes: tuple[str, ...] = Field((), exclude=True)
    """How the file was interpreted, such as other tools' key names; not part of the recipe."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> "Recipe":
        for section in (self.model, self.lora, self.data, self.train, self.modal):
            for key, value in section.model_dump(mode="json").items():
                if secret := kind_of(key, value):
                    raise ValueError(f"{key} looks like {secret}; put it in the environment")
        return self

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        if found := [text for _, text in contradictions(self.model, self.data, self.train)]:
            raise ValueError("\n".join(found))
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()  # notes are not dumped

    def __hash__(self) -> int:
        return hash(self.to_yaml())

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return expand(self.train.output_dir or f"runs/{self.name}")

    def on_gpus(self, gpus: int) -> "Recipe":
        """The recipe of a run on that many GPUs: with `train.batch_per_gpu`, a step has a batch for each of them."""
        if not self.train.batch_per_gpu:
            return self
        steps = gpus * self.train.gradient_accumulation_steps
        train = self.train.model_copy(update={"gradient_accumulation_steps": steps, "batch_per_gpu": False})
        return self.model_copy(update={"train": train})

    def to_yaml(self) -> str:
        """The recipe with every key spelled out; reads back as the same recipe."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """The keys that determine the resulting weights, as `section.key`; a run can be resumed if they are equal.

        The locations of data and model are not included: their content is fingerprinted instead. Neither is what
        affects only memory and speed, so that a run that ran out of memory can resume with a smaller microbatch.
        """
        dump = self.model_dump(mode="json", include={"model", "lora", "data", "train"})
        flat = {f"{section}.{key}": value for section, keys in dump.items() for key, value in keys.items()}
        flat["data.train_file"] = _mixture(self.data.train_file)
        flat["train.samples_per_step"] = self.train.samples_per_step
        flat["train.optim"] = self.train.optim.removesuffix("_fused")
        watched = self.train.load_best_model_at_end or self.train.early_stopping_patience
        free = _FREE if watched else _FREE | _FREE_UNLESS_WATCHED
        return {key: value for key, value in flat.items() if key not in free}


_FREE = {
    "model.model_name_or_path",
    "model.revision",
    "data.validation_file",
    "train.output_dir",
    "train.per_device_train_batch_size",  # samples_per_step, its product with the next, is included instead
    "train.gradient_accumulation_steps",
    "train.batch_per_gpu",  # and so is what it comes to
    "train.gradient_checkpointing",
    "train.max_tokens_per_microbatch",
    "train.logging_steps",
    "train.eval_on_start",  # the base is not among the weights that load_best_model_at_end chooses from
    "train.sample_rows",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
}
_FREE_UNLESS_WATCHED = {"train.eval_steps", "train.early_stopping_threshold"}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The differences that would give different weights, each as `key: old -> new`."""
    before, after = old.identity(), new.identity()
    changed = [key for key in after if key in before and before[key] != after[key]]
    return [f"{key}: {_show(before[key])} -> {_show(after[key])}" for key in changed]


def _mixture(files: tuple[str | DataFile, ...]) -> list[dict[str, Any]]:
    """How the entries are read and mixed; where their files are does not matter."""
    kept = [file.model_dump(mode="json", exclude=_PLACE) for file in files if isinstance(file, DataFile)]
    return [keys for keys in kept if keys]


def _show(value: Any) -> str:
    text = str(value)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{len(text):,} characters with the digest {hashlib.sha256(text.encode()).hexdigest()[:12]}"
