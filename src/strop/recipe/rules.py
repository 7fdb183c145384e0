"""Values of a recipe that are allowed by themselves but not together."""

from collections.abc import Iterator

from strop.recipe.schema import DataFile, DataSection, ModelSection, TrainSection

Contradiction = tuple[tuple[str, ...], str]
"""The keys concerned, and what is wrong."""


def contradictions(model: ModelSection, data: DataSection, train: TrainSection) -> Iterator[Contradiction]:
    """Every contradiction between the values of these sections."""
    yield from _of_the_engine(model, train)
    yield from _of_the_schedule(train)
    yield from _of_the_mixture(data)
    yield from _of_the_rows(model, data)
    yield from _of_held_out_rows(data, train)


def _of_the_schedule(train: TrainSection) -> Iterator[Contradiction]:
    if train.warmup_steps and train.warmup_ratio:
        keys = ("train.warmup_steps", "train.warmup_ratio")
        text = f"{keys[0]}={train.warmup_steps} and {keys[1]}={train.warmup_ratio} both set the warmup; keep one"
        yield keys, text
    if train.max_steps == 0:
        yield ("train.max_steps",), "train.max_steps=0 trains nothing; use -1 to train for train.num_train_epochs"
    if train.early_stopping_patience and not train.eval_steps:
        keys = ("train.early_stopping_patience", "train.eval_steps")
        yield keys, f"{keys[0]}={train.early_stopping_patience} needs evaluations: set {keys[1]} above 0"


def _of_the_mixture(data: DataSection) -> Iterator[Contradiction]:
    key = "data.train_file"
    weighted = [isinstance(file, DataFile) and file.weight is not None for file in data.train_file]
    if any(weighted) and not all(weighted):
        yield (key,), f"{key}: weight is a share among all files, so every entry of the list needs one"
    key = "data.validation_file"
    held_out = [file for file in data.validation_file if isinstance(file, DataFile)]
    if any((file.weight, file.repeat) != (None, None) for file in held_out):
        yield (key,), f"{key}: held-out rows are scored once each; remove repeat and weight"


def _of_the_rows(model: ModelSection, data: DataSection) -> Iterator[Contradiction]:
    if data.columns and data.format != "auto":
        keys = ("data.columns", "data.format")
        yield keys, f"data.columns decides the format; remove data.format={data.format}"
    for key in ("chat_template", "system"):
        if getattr(data, key) and data.template in ("alpaca", "plain"):
            keys = (f"data.{key}", "data.template")
            yield keys, f"data.{key} is not used with data.template={data.template}; keep one"
    if data.long_overlap and data.long_samples != "split":
        keys = ("data.long_overlap", "data.long_samples")
        yield keys, f"data.long_overlap={data.long_overlap} needs data.long_samples=split"
    if data.long_overlap >= model.max_seq_length - 1:
        keys = ("data.long_overlap", "model.max_seq_length")
        limit = model.max_seq_length
        yield keys, f"data.long_overlap={data.long_overlap} must be less than model.max_seq_length={limit}"


def _of_held_out_rows(data: DataSection, train: TrainSection) -> Iterator[Contradiction]:
    keys = ("data.validation_file", "data.validation_split_percentage")
    if data.validation_file and data.validation_split_percentage:
        yield (
            keys,
            f"{keys[0]} and {keys[1]}={data.validation_split_percentage} both set the held-out rows; keep one",
        )
    if not data.validation_file and not data.validation_split_percentage:
        for key in ("eval_steps", "eval_on_start", "load_best_model_at_end", "early_stopping_patience", "sample_rows"):
            if value := getattr(train, key):
                needs = f"train.{key}={value} needs held-out rows: set {keys[0]} or {keys[1]}"
                yield (f"train.{key}", *keys), needs


def _of_the_engine(model: ModelSection, train: TrainSection) -> Iterator[Contradiction]:
    """Values that strop's engine supports and Unsloth does not."""
    only_strop = {
        "model.precision": (
            model.precision == "float8" and model.precision,
            "float8 weights; use bfloat16, or model.load_in_4bit for NF4",
        ),
        "train.max_tokens_per_microbatch": (
            train.max_tokens_per_microbatch,
            "packed microbatches; limit its memory with train.per_device_train_batch_size",
        ),
    }
    for key, (value, text) in only_strop.items():
        if value and train.engine == "unsloth":
            yield (key, "train.engine"), f"{key}={value}: train.engine=unsloth does not support {text}"
