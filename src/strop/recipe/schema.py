"""A whole run as one frozen object: what to train, on which rows, how, and where.

Keys have Hugging Face's names. What a file says is read by `recipe.reader`, which knows other tools' names too and
reports all faults of a file at once; this module holds the schema and the rules.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

SEVEN_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPUS = ("T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "RTX-PRO-6000", "H100", "H200", "B200")
EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
"""Numbers such as 2e-4, which YAML 1.1 takes for text; strop reads them as numbers, so it quotes such text."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that strop's reader would take for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789."))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMore = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""A list of strings, for which a single string may stand."""


Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...],
    BeforeValidator(lambda value: () if value in ("none", ["none"], None) else _as_list(value)),
]
"""Names of experiment trackers, or `none`."""


class Section(BaseModel):
    """Base of all sections: immutable, and a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would read `r: true` as r=1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are not values of this key")
        return value


class ModelSection(Section):
    """The base model."""

    model_name_or_path: str = Field(min_length=1)
    """A model folder, a hub id, a .gguf file, or `package:PKG/path` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    max_seq_length: int = Field(2048, ge=8)
    """Longest sample in tokens; longer ones are cut at the end."""
    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Type of the frozen weights and activations; float8: bfloat16 activations, and float8 (e4m3) frozen weights.
    auto: float8 on Hopper and later where the fused layers apply, bfloat16 on GPUs that have it, else float32."""
    load_in_4bit: bool = False
    """NF4 base weights, as QLoRA and bitsandbytes have them, in a quarter of bfloat16's memory; embedding and head stay
    as they are. With precision float8: weights rounded to NF4 once, then held in float8: its speed and memory."""


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

    output_dir: str | None = Field(None, min_length=1)
    """The run folder; by default runs/ and the recipe's name."""
    engine: Literal["strop", "unsloth"] = "strop"
    """What computes the steps: strop, or Unsloth with TRL's trainer on the same rows in the same order."""
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
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] = "adamw_torch"
    """AdamW; the fused kernel is always used, so the first two mean the same. adamw_8bit: moments in 8 bits, as
    bitsandbytes has them. That saves 6 bytes a trainable parameter, 0.18 GB for 30 million: prefer the default."""
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
    sample_rows: int | None = Field(None, ge=0, le=64)
    """Held-out rows that are answered at each evaluation, into samples.jsonl; 0 for none. None: 2, and none where rows
    have no question."""
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
    report_to: Trackers = ()
    """Experiment trackers, one or a list: tensorboard, wandb, trackio, mlflow (docs/trackers.md); or none."""

    @property
    def samples_per_step(self) -> int:
        """The batch: samples in an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class ModalSection(Section):
    """Where a run on Modal goes."""

    gpu: OneOrMore = Field(("H200",), min_length=1)
    """GPU type, with an optional count (H100:2), or a list: the next is taken where none is free, the next with more
    memory where the run does not fit."""
    timeout: int = Field(86400, ge=60, le=86400)
    """Seconds an attempt may take; Modal allows 24 hours. A run that takes longer goes on in the next attempt."""
    max_cost: float | None = Field(None, gt=0)
    """Dollars that all attempts may cost together; the run then saves, ends with exit code 7 and can go on."""
    secrets: OneOrMore = ()
    """Names of Modal secrets that the run shall see, such as the one that holds HF_TOKEN."""

    @field_validator("gpu")
    @classmethod
    def _known_gpus(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        gpus = tuple(re.sub("^A10G(?=:|$)", "A10", gpu, flags=re.IGNORECASE) for gpu in value)  # its former name
        for gpu in gpus:
            kind, colon, count = gpu.partition(":")
            if kind.rstrip("!+").upper() not in GPUS or (colon and not re.fullmatch("[1-8]", count)):
                raise ValueError(
                    f"Modal has {', '.join(GPUS)}, each with an optional count from 1 to 8, such as H100:2"
                )
        return gpus


def contradictions(
    model: ModelSection, data: DataSection, train: TrainSection
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that are each allowed and do not go together, as the keys concerned and what is wrong."""
    yield from _not_of_the_engine(model, train)
    if train.warmup_steps and train.warmup_ratio:
        keys: tuple[str, ...] = ("train.warmup_steps", "train.warmup_ratio")
        text = f"{keys[0]}={train.warmup_steps} and {keys[1]}={train.warmup_ratio} say the same thing twice; keep one"
        yield keys, text
    if train.max_steps == 0:
        yield ("train.max_steps",), "train.max_steps=0 trains nothing; use -1 to count by epochs"
    if train.early_stopping_patience and not train.eval_steps:
        keys = ("train.early_stopping_patience", "train.eval_steps")
        yield keys, f"{keys[0]}={train.early_stopping_patience} needs {keys[1]} above 0 to have anything to watch"
    held_out = ("data.validation_file", "data.validation_split_percentage")
    if data.validation_file and data.validation_split_percentage:
        yield (
            held_out,
            f"{held_out[0]} and {held_out[1]}={data.validation_split_percentage} both hold out rows; keep one",
        )
    if not data.validation_file and not data.validation_split_percentage:
        for key in ("eval_steps", "eval_on_start", "load_best_model_at_end", "early_stopping_patience", "sample_rows"):
            if value := getattr(train, key):
                needs = f"train.{key}={value} needs held-out rows: set {held_out[0]} or {held_out[1]}"
                yield (f"train.{key}", *held_out), needs


def _not_of_the_engine(model: ModelSection, train: TrainSection) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that strop's engine has and Unsloth has not."""
    only_strop = {
        "model.precision": (
            model.precision == "float8" and model.precision,
            "float8 weights: use bfloat16, or model.load_in_4bit for NF4",
        ),
        "train.max_tokens_per_microbatch": (
            train.max_tokens_per_microbatch,
            "packed microbatches: train.per_device_train_batch_size bounds its memory",
        ),
    }
    for key, (value, text) in only_strop.items():
        if value and train.engine == "unsloth":
            yield (key, "train.engine"), f"{key}={value}: train.engine=unsloth has no {text}"


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
        return Path(self.train.output_dir or f"runs/{self.name}").expanduser()

    def to_yaml(self) -> str:
        """The recipe with every key spelled out; reads back as the same recipe."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """The keys that decide the resulting weights, as `section.key`; a run can be continued if these are equal.

        Where data and model lie is not among them: their content is fingerprinted instead. Nor is what changes memory
        and speed alone, so that a run that went out of memory can go on with a smaller microbatch.
        """
        dump = self.model_dump(mode="json", include={"model", "lora", "data", "train"})
        flat = {f"{section}.{key}": value for section, keys in dump.items() for key, value in keys.items()}
        flat["train.samples_per_step"] = self.train.samples_per_step
        flat["train.optim"] = self.train.optim.removesuffix("_fused")
        watched = self.train.load_best_model_at_end or self.train.early_stopping_patience
        free = _FREE if watched else _FREE | _FREE_UNLESS_WATCHED
        return {key: value for key, value in flat.items() if key not in free}


_FREE = {
    "model.model_name_or_path",
    "model.revision",
    "data.train_file",
    "data.validation_file",
    "train.output_dir",
    "train.per_device_train_batch_size",  # its product with the next, samples_per_step, decides
    "train.gradient_accumulation_steps",
    "train.gradient_checkpointing",
    "train.max_tokens_per_microbatch",
    "train.logging_steps",
    "train.sample_rows",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
}
_FREE_UNLESS_WATCHED = {"train.eval_on_start", "train.eval_steps", "train.early_stopping_threshold"}


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Where two recipes would give different weights, one `key: old -> new` a line."""
    before, after = old.identity(), new.identity()
    return [f"{key}: {before[key]} -> {after[key]}" for key in after if key in before and before[key] != after[key]]
