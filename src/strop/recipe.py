"""A whole run as one frozen object: what to train, on which rows, how, and where.

Keys have Hugging Face's names. What a file says is read by `recipe_file`, which knows other tools' names too and
reports all faults of a file at once; this module holds the schema and the rules.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from strop.errors import RecipeError

SEVEN_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPUS = ("T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "RTX-PRO-6000", "H100", "H200", "B200")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMore = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""A list of strings, for which a single string may stand."""


class Section(BaseModel):
    """Base of all sections: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSection(Section):
    """The base model."""

    model_name_or_path: str = Field(min_length=1)
    """A model folder, a hub id, a .gguf file, or `package:PKG/path` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    max_seq_length: int = Field(2048, ge=8)
    """Longest sample in tokens; longer ones are cut at the end."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights and activations. auto: bfloat16 on a GPU that has it, else float32."""
    load_in_4bit: bool = False
    """NF4 weights; not in this version."""

    @model_validator(mode="after")
    def _no_nf4_yet(self) -> "ModelSection":
        if self.load_in_4bit:
            raise ValueError("load_in_4bit=true: NF4 is not in this version; leave it out and train in bfloat16")
        return self


class LoraSection(Section):
    """The adapter."""

    r: int = Field(16, ge=1, le=1024)
    """Rank."""
    lora_alpha: float = Field(16.0, gt=0)
    """The low-rank term is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which an input of the low-rank term is dropped."""
    target_modules: Literal["all-linear"] | OneOrMore = SEVEN_MODULES
    """Modules that get an adapter, by name, or all-linear."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead."""
    bias: Literal["none"] = "none"
    """Biases are never trained."""


class DataSection(Section):
    """The rows."""

    train_file: OneOrMore = Field(min_length=1)
    """Files, globs, hub ids (`org/name[:split]`) or `package:PKG/path`; JSONL, JSON, CSV or Parquet."""
    validation_file: OneOrMore = ()
    """Held-out rows, likewise."""
    validation_split_percentage: float = Field(0.0, ge=0, le=50)
    """Share of the training rows to hold out where there is no validation_file, in percent."""
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text"] = "auto"
    """Shape of the rows. auto: found from their keys."""
    template: Literal["auto", "chat", "alpaca", "plain"] = "auto"
    """How a row becomes text: the model's chat template, the alpaca prompt, or as it stands."""
    train_on: Literal["completion", "all"] = "completion"
    """Learn the answers, or everything."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do about rows that cannot be used: report them all and stop, or train without them."""
    max_train_samples: int | None = Field(None, ge=1)
    """Use only so many training rows."""
    max_eval_samples: int | None = Field(None, ge=1)
    """Use only so many held-out rows."""


class TrainSection(Section):
    """The training."""

    output_dir: str | None = None
    """The run folder; by default runs/ and the recipe's name."""
    per_device_train_batch_size: int = Field(4, ge=1)
    """Samples in an accumulation step. Only its product with gradient_accumulation_steps matters."""
    gradient_accumulation_steps: int = Field(2, ge=1)
    """Accumulation steps in an optimizer step."""
    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the rate falls after warmup."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the rate rises from 0."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """The same as a share of all steps."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Times to go through the rows."""
    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps; -1 counts by epochs."""
    optim: Literal["adamw_torch", "adamw_torch_fused"] = "adamw_torch"
    """AdamW; the fused kernel is always used, so both mean the same."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Of the initial adapter, the order of the rows and dropout."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    max_tokens_per_microbatch: int | None = Field(None, ge=1)
    """Token budget of a microbatch. Changes memory and speed, not the result. None: chosen."""
    logging_steps: int = Field(1, ge=1)
    """Steps between lines where output is not a terminal."""
    eval_on_start: bool = False
    """Evaluate the held-out rows before the first step too."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations of the held-out rows; 0 evaluates at the end only."""
    save_steps: int = Field(500, ge=0)
    """Steps between checkpoints; 0 saves at the end and when interrupted only."""
    save_total_limit: int = Field(3, ge=1)
    """Checkpoints to keep."""
    load_best_model_at_end: bool = False
    """The adapter gets the weights of the lowest held-out loss instead of the last."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without gain."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """The least fall of the held-out loss that counts as gain."""
    report_to: Literal["none"] = "none"
    """Experiment trackers; none in this version."""

    @property
    def samples_per_step(self) -> int:
        """The batch: samples in an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _agree(self) -> "TrainSection":
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio say the same thing twice; keep one")
        if self.max_steps == 0:
            raise ValueError("max_steps=0 trains nothing; use -1 to count by epochs")
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("early_stopping_patience needs eval_steps above 0 to have anything to watch")
        return self


class ModalSection(Section):
    """Where a run on Modal goes."""

    gpu: OneOrMore = ("H200",)
    """GPU type, with an optional count (H100:2), or a list in order of preference."""
    timeout: int = Field(86400, ge=60, le=86400)
    """Seconds an attempt may take; Modal allows 24 hours."""

    @model_validator(mode="after")
    def _known_gpus(self) -> "ModalSection":
        for gpu in self.gpu:
            if gpu.split(":")[0].rstrip("!+").upper() not in GPUS:
                raise ValueError(f"gpu={gpu}: Modal has {', '.join(GPUS)}")
        return self


class Recipe(Section):
    """A whole run."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the run folder; by default the file's name."""
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection
    train: TrainSection = TrainSection()
    modal: ModalSection = ModalSection()
    notes: tuple[str, ...] = Field((), exclude=True)
    """What reading the file took for granted, such as other tools' key names; not part of the recipe."""

    @model_validator(mode="after")
    def _held_out_rows(self) -> "Recipe":
        if self.data.validation_file and self.data.validation_split_percentage:
            raise ValueError("data.validation_file and data.validation_split_percentage both hold out rows; keep one")
        if not self.data.validation_file and not self.data.validation_split_percentage:
            for key in ("eval_steps", "eval_on_start", "load_best_model_at_end", "early_stopping_patience"):
                if getattr(self.train, key):
                    raise ValueError(
                        f"train.{key} needs held-out rows: set data.validation_file or data.validation_split_percentage"
                    )
        return self

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        return Path(self.train.output_dir or f"runs/{self.name}")

    def to_yaml(self) -> str:
        """The recipe with every key spelled out; reads back as the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """The keys that decide the resulting weights, as `section.key`; a run can be continued if these are equal.

        Where data and model lie is not among them: their content is fingerprinted instead.
        """
        free = {
            "model.model_name_or_path",
            "data.train_file",
            "data.validation_file",
            "train.output_dir",
            "train.logging_steps",
            "train.save_steps",
            "train.save_total_limit",
            "train.report_to",
        }
        dump = self.model_dump(mode="json", include={"model", "lora", "data", "train"})
        flat = {f"{section}.{key}": value for section, keys in dump.items() for key, value in keys.items()}
        return {key: value for key, value in flat.items() if key not in free}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Where two recipes would give different weights, one `key: old -> new` a line."""
    before, after = old.identity(), new.identity()
    return [f"{key}: {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, with some keys replaced.

    Args:
        name_or_path: A YAML file, or a name that `list_recipes` knows.
        overrides: `key=value` strings, or a mapping, nested or with dotted keys.

    Raises:
        RecipeError: Everything that is wrong with it, in one message.
    """
    from strop.recipe_file import read_recipe

    return read_recipe(name_or_path, overrides)


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    from strop.recipe_file import SHIPPED

    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        RecipeError: There is none of this name.
    """
    from strop.recipe_file import SHIPPED

    if name not in list_recipes():
        raise RecipeError(f"there is no shipped recipe {name!r}; there are {', '.join(list_recipes())}")
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
