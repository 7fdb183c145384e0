"""The keys of a recipe and what they mean, one class for each section.

Keys have Hugging Face's names. `recipe.rules` says which values do not go together; `recipe.reader` reads files,
understands other tools' names too, and reports all errors of a file at once.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from strop.errors import RecipeError
from strop.gpus import GPUS, modals_name, parse_gpu
from strop.resolve import read_chat_template

SEVEN_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
"""Numbers such as 2e-4, which YAML 1.1 reads as text. strop reads them as numbers, so it quotes such text."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMore = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
"""A list of strings; a single string counts as a list of one."""


Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...],
    BeforeValidator(lambda value: () if value in ("none", ["none"], None) else _as_list(value)),
]
"""Names of experiment trackers, or `none`."""


PARTS = ("messages", "prompt", "completion", "instruction", "input", "output", "system", "history", "text")
"""What a column of a row can be."""
_TOGETHER: tuple[tuple[set[str], set[str]], ...] = (
    ({"messages"}, {"system"}),
    ({"text"}, set()),
    ({"prompt", "completion"}, {"system", "history", "input"}),
    ({"instruction", "output"}, {"system", "history", "input"}),
)


def _known_parts(value: dict[str, str]) -> dict[str, str]:
    if unknown := sorted(value.keys() - set(PARTS)):
        raise ValueError(f"{', '.join(unknown)}: the parts of a row are {', '.join(PARTS)}")
    if value and not any(needed <= value.keys() <= needed | more for needed, more in _TOGETHER):
        raise ValueError(
            "name prompt and completion, or instruction and output, or messages, or text, and nothing else"
        )
    return value


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would read `r: true` as r=1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in (bool, bool | None):
            raise ValueError("this key does not take true or false")
        return value


class ModelSection(Section):
    """The base model."""

    model_name_or_path: str = Field(min_length=1)
    """A model folder, a hub id, a .gguf file, or `package:PKG/path` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    max_seq_length: int = Field(2048, ge=8)
    """Longest sample in tokens; longer ones are truncated at the end."""
    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Type of the frozen weights and activations. float8: float8 (e4m3) frozen weights and bfloat16 activations.
    auto: float8 on Hopper and later where the fused layers apply, bfloat16 on GPUs that support it, else float32."""
    load_in_4bit: bool = False
    """NF4 base weights, as in QLoRA and bitsandbytes, in a quarter of bfloat16's memory; embedding and head are not
    quantised. With precision float8, weights are rounded to NF4 once and then kept in float8, with its speed and
    memory."""


class LoraSection(Section):
    """The adapter."""

    r: int = Field(16, ge=1, le=1024)
    """Rank."""
    lora_alpha: float = Field(16.0, gt=0)
    """The low-rank term is scaled by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input of the low-rank term."""
    target_modules: Literal["all-linear"] | OneOrMore = SEVEN_MODULES
    """Modules that get an adapter, by name, or all-linear."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead."""
    bias: Literal["none"] = "none"
    """Biases are never trained."""


RowFormat = Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "text", "tokens"]
Columns = Annotated[dict[str, str], AfterValidator(_known_parts)]
"""A part of a row (prompt, completion, messages, ...) -> the column that has it."""


class DataFile(Section):
    """One of the sources of a mixture, with keys of its own."""

    path: str = Field(min_length=1)
    """A file, glob, hub id or `package:PKG/path`."""
    split: str | None = None
    """Split of a hub id or of a file that has several, and which of its rows: `train`, `train[:1000]`, `[10%:20%]`."""
    subset: str | None = None
    """Folder of a hub id that has several data sets in one."""
    format: RowFormat = "auto"
    """Shape of the rows; auto: detected from their keys."""
    columns: Columns = Field(default_factory=dict)
    """Which column is which, as in data.columns."""
    max_samples: int | None = Field(None, ge=1)
    """Use at most this many of its rows, from the start."""
    repeat: float | None = Field(None, gt=0, le=1000)
    """How often each of its samples is seen in an epoch; 0.5 takes half of them."""
    weight: float | None = Field(None, gt=0)
    """Its share of an epoch, relative to the other weights. An epoch is then as long as it takes to see every sample of
    every source at least once."""

    @model_validator(mode="after")
    def _one_way(self) -> "DataFile":
        if self.repeat is not None and self.weight is not None:
            raise ValueError(f"{self.path}: repeat and weight both say how often it is seen; keep one")
        if self.columns and self.format != "auto":
            raise ValueError(f"{self.path}: columns decide the format; remove format={self.format}")
        return self

    @model_serializer(mode="wrap")
    def _what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        keys: dict[str, Any] = dump(self)
        return {
            key: value for key, value in keys.items() if value != fields[key].get_default(call_default_factory=True)
        }


def _as_sources(value: Any) -> Any:
    return [value] if isinstance(value, str | dict | DataFile) else value


Sources = Annotated[tuple[str | DataFile, ...], BeforeValidator(_as_sources)]
"""A list of files, each a name or a mapping with keys of its own; a single one counts as a list of one."""


class DataSection(Section):
    """The rows."""

    train_file: Sources = Field(min_length=1)
    """Files, globs, hub ids (`org/name[:split]`) or `package:PKG/path`; JSONL, JSON, CSV, Parquet or Arrow. An entry
    may also be a mapping with path, split, subset, format, columns, max_samples, and repeat or weight."""
    validation_file: Sources = ()
    """Held-out rows, named in the same way."""
    validation_split_percentage: float = Field(0.0, ge=0, le=50)
    """Percentage of the training rows to hold out if there is no validation_file."""
    format: RowFormat = "auto"
    """Shape of the rows. auto: detected from their keys."""
    columns: Columns = Field(default_factory=dict)
    """Which column is which, for rows with names of their own: {prompt: ..., completion: ...}, {messages: ...}, {text:
    ...} or {instruction: ..., input: ..., output: ...}, each also with system and history."""
    template: Literal["auto", "chat", "alpaca", "plain"] = "auto"
    """How a row becomes text: with the model's chat template, with the alpaca prompt, or unchanged (plain)."""
    chat_template: str | None = Field(None, min_length=1)
    """A chat template of your own in place of the model's: a file, or the Jinja text itself."""
    system: str | None = Field(None, min_length=1)
    """The system message of rows that have none; needs a chat template."""
    long_samples: Literal["cut", "split", "drop"] = "cut"
    """What to do with samples over model.max_seq_length: cut their end off, drop them, or split documents (text rows)
    into several."""
    long_overlap: int = Field(0, ge=0)
    """Tokens that a part of a split document repeats of the part before it, as context that is not learned again."""
    train_on: Literal["completion", "all"] = "completion"
    """Learn the answers, or everything."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be used: report all of them and stop, or skip them."""
    max_train_samples: int | None = Field(None, ge=1)
    """Use at most this many training rows."""
    max_eval_samples: int | None = Field(None, ge=1)
    """Use at most this many held-out rows."""

    @field_validator("chat_template")
    @classmethod
    def _as_text(cls, value: str | None) -> str | None:
        """Its text in place of its file, which may change while a run trains."""
        try:
            return None if value is None else read_chat_template(value)
        except RecipeError as error:
            raise ValueError(str(error).removeprefix("data.chat_template: ")) from None


class TrainSection(Section):
    """The training."""

    output_dir: str | None = Field(None, min_length=1)
    """The run folder; by default runs/NAME, with the recipe's name."""
    engine: Literal["strop", "unsloth"] = "strop"
    """What computes the steps: strop, or Unsloth with TRL's trainer on the same rows in the same order."""
    per_device_train_batch_size: int = Field(4, ge=1)
    """Samples per accumulation step. Only its product with gradient_accumulation_steps matters."""
    gradient_accumulation_steps: int = Field(2, ge=1)
    batch_per_gpu: bool = False
    """Whether that product is the batch of each GPU, as for transformers' Trainer. By default it is that of a step,
    however many GPUs there are."""
    """Accumulation steps per optimizer step."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes after warmup."""
    warmup_steps: int = Field(0, ge=0)
    """Number of steps in which the learning rate rises from 0."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """The same, as a fraction of all steps."""
    num_train_epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the training samples; every sample is seen equally often, and a step may cross the end of an epoch
    (97 samples, 8 a step, 3 epochs: 37 steps; transformers' Trainer makes 39). A run has at least one step."""
    max_steps: int = Field(-1, ge=-1)
    """Number of optimizer steps; -1 trains for num_train_epochs instead."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] = "adamw_torch"
    """AdamW; the fused kernel is always used, so the first two are the same. adamw_8bit: moments in 8 bits, as in
    bitsandbytes. That saves 6 bytes per trainable parameter, 0.18 GB for 30 million: prefer the default."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay rate of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay rate of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the square root of the second moment."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 turns clipping off."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Seed of the initial adapter, the order of the rows, and dropout."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: needs less memory, about a third slower."""
    max_tokens_per_microbatch: int | None = Field(None, ge=1)
    """The most tokens in a microbatch. Affects memory and speed, not the result. Chosen automatically if not set."""
    logging_steps: int = Field(1, ge=1)
    """Steps between progress lines if the output is not a terminal."""
    eval_on_start: bool | None = None
    """Evaluate the held-out rows before the first step too: the base model's loss, which the others are compared with.
    It is never the best one, and patience does not count it. If not set: yes if there are held-out rows."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations of the held-out rows; 0 evaluates only at the end."""
    sample_rows: int | None = Field(None, ge=0, le=64)
    """Number of held-out rows to answer at each evaluation, written to samples.jsonl; 0 turns this off. If not set: 2,
    but 0 if the rows have no question."""
    save_steps: int = Field(500, ge=0)
    """Steps between checkpoints; 0 saves only at the end and when interrupted."""
    save_total_limit: int = Field(3, ge=1)
    """Number of checkpoints to keep."""
    load_best_model_at_end: bool = False
    """Save the adapter with the lowest held-out loss instead of the last one."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without improvement."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """The smallest drop of the held-out loss that counts as an improvement."""
    report_to: Trackers = ()
    """Experiment trackers, one or a list: tensorboard, wandb, trackio, mlflow (see docs/trackers.md), or none."""

    @field_validator("warmup_steps", "eval_steps", "save_steps", "logging_steps", mode="before")
    @classmethod
    def _no_share(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse transformers' other meaning of these keys: below 1 they are a share of all steps there."""
        if isinstance(value, float) and 0 < value < 1:
            instead = "use train.warmup_ratio" if info.field_name == "warmup_steps" else "give a number of steps"
            raise ValueError(f"a share of all steps is not understood here; {instead}")
        return value

    @property
    def samples_per_step(self) -> int:
        """The batch size: samples per optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class ModalSection(Section):
    """Runs on Modal: GPU, time, cost and secrets."""

    gpu: OneOrMore = Field(("H200",), min_length=1)
    """GPU type, with an optional count (H100:2), or a list. The next one is tried if none is free, and the next with
    more memory if the run does not fit."""
    timeout: int = Field(86400, ge=60, le=86400)
    """Seconds an attempt may take; Modal allows 24 hours. A longer run continues in the next attempt."""
    max_cost: float | None = Field(None, gt=0)
    """The most dollars that all attempts together may cost. The run then saves, ends with exit code 7, and can be
    resumed."""
    secrets: OneOrMore = ()
    """Names of Modal secrets to give the run, such as one that holds HF_TOKEN."""

    @field_validator("gpu")
    @classmethod
    def _known_gpus(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        gpus = tuple(map(modals_name, value))
        for gpu in gpus:
            if not re.fullmatch("[^:]+(:[1-8])?", gpu) or parse_gpu(gpu)[0] not in GPUS:
                raise ValueError(
                    f"Modal has {', '.join(GPUS)}, each with an optional count from 1 to 8, such as H100:2"
                )
        return gpus
