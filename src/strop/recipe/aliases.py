"""The key names of Axolotl, TRL, LLaMA-Factory and Unsloth, and what they mean here.

What only holds for a file as a whole, such as LLaMA-Factory's default for lora_alpha, is in `recipe.implied`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strop.recipe.data_files import without_train
from strop.recipe.wording import nearest
from strop.resolve import expand

ALIASES: dict[str, str] = {
    "model": "model.model_name_or_path",
    "base_model": "model.model_name_or_path",
    "model_name": "model.model_name_or_path",
    "model_id": "model.model_name_or_path",
    "model_revision": "model.revision",
    "max_length": "model.max_seq_length",
    "cutoff_len": "model.max_seq_length",
    "sequence_len": "model.max_seq_length",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "peft_use_rslora": "lora.use_rslora",
    "dataset": "data.train_file",
    "datasets": "data.train_file",
    "dataset_name": "data.train_file",
    "train_files": "data.train_file",
    "data_files": "data.train_file",
    "eval_dataset": "data.validation_file",
    "test_datasets": "data.validation_file",
    "validation_files": "data.validation_file",
    "default_system": "data.system",
    "default_system_message": "data.system",
    "chat_template_jinja": "data.chat_template",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "optimizer": "train.optim",
    "max_norm": "train.max_grad_norm",
    "log_steps": "train.logging_steps",
    "random_state": "train.seed",
    "use_gradient_checkpointing": "train.gradient_checkpointing",
}
"""Another tool's name -> the key it means."""

Keys = dict[str, Any]


def _percentage(value: Any) -> Keys:
    if isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError("must be a fraction from 0 up to 1, not a number of rows")
    return {"data.validation_split_percentage": round(float(value) * 100, 9)}  # 0.07 * 100 is 7.000000000000001


def _switch(key: str, if_true: Any, if_false: Any) -> Callable[[Any], Keys]:
    """A key that is true or false, and what each means."""

    def read(value: Any) -> Keys:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return {key: if_true if value else if_false}

    return read


def _responses_only(value: Any) -> Keys:
    """Unsloth's function, or its arguments: strop knows by position what is an answer."""
    if isinstance(value, dict) and value.keys() <= {"instruction_part", "response_part"}:
        return {"data.train_on": "completion"}
    return _switch("data.train_on", "completion", "all")(value)


def _bf16(value: Any) -> Keys:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("must be true, false or auto")
    return {"model.precision": {True: "bfloat16", False: "float32"}.get(value, "auto")}


def _qlora(value: Any) -> Keys:
    if value != "qlora":
        raise ValueError("must be lora or qlora; strop trains only LoRA")
    return {"model.load_in_4bit": True}


def _four_bits(value: Any) -> Keys:
    if value != 4:
        raise ValueError("must be 4; remove it to train in bfloat16")
    return {"model.load_in_4bit": True}


def _all_linear(value: Any) -> Keys:
    if value is not True:
        raise ValueError("must be true; or name the modules in lora.target_modules")
    return {"lora.target_modules": "all-linear"}


def _long_samples(value: Any) -> Keys:
    meanings = {"drop": "drop", "truncate": "cut"}
    if value not in meanings:
        raise ValueError("must be drop or truncate; see data.long_samples")
    return {"data.long_samples": meanings[value]}


def _text_column(value: Any) -> Keys:
    if not isinstance(value, str):
        raise ValueError("must be the name of a column")
    return {"data.columns": {"text": value}}


def _mixture(value: Any) -> Keys:
    """TRL's mixture of data sets."""
    if not isinstance(value, dict) or "datasets" not in value:
        raise ValueError("must be a mapping with datasets")
    if unknown := sorted(map(str, value.keys() - {"datasets", "streaming", "test_split_size"})):
        raise ValueError(f"{', '.join(unknown)} is not supported; the keys are datasets and test_split_size")
    share = value.get("test_split_size")
    return {"data.train_file": value["datasets"]} | ({} if share is None else _percentage(share))


def _template_file(value: Any) -> Keys:
    """TRL's file, or model whose chat template is to be used."""
    path = expand(str(value))
    if path.is_dir():
        path = path / "chat_template.jinja"
    if not path.is_file():
        raise ValueError("there is no such file; download the model's chat_template.jinja and name it here")
    return {"data.chat_template": str(path)}


def _split(value: Any) -> Keys:
    split = without_train(value)
    return {} if split is None else {"each.split": split}


def _each_max_samples(value: Any) -> Keys:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a number of rows, at least 1")
    return {"each.max_samples": value}


def _mix(value: Any) -> Keys:
    if value not in ("concat", "interleave_over"):
        raise ValueError(
            "is not supported: it stops when one data set is used up, and strop sees every row of all of them; "
            "use interleave_over, or shorten the others with max_samples"
        )
    return {"each.weights": True} if value == "interleave_over" else {}


def _probabilities(value: Any) -> Keys:
    shares = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return {"each.shares": [float(share) for share in shares]}


def _plugins(value: Any) -> Keys:
    """Axolotl's plugins, if they are kernels."""
    others = [name for name in value if not re.search("liger|cut_cross_entropy", str(name))]
    if others:
        raise ValueError(f"{', '.join(map(str, others))} is not supported; strop runs no plugins")
    return {}


TRANSLATED: dict[str, Callable[[Any], Keys]] = {
    "val_size": _percentage,
    "val_set_size": _percentage,
    "test_split_size": _percentage,
    "train_on_inputs": _switch("data.train_on", "all", "completion"),
    "train_on_prompt": _switch("data.train_on", "all", "completion"),
    "assistant_only_loss": _switch("data.train_on", "completion", "all"),
    "completion_only_loss": _switch("data.train_on", "completion", "all"),
    "train_on_responses_only": _responses_only,
    "excess_length_strategy": _long_samples,
    "dataset_text_field": _text_column,
    "dataset_mixture": _mixture,
    "dataset_config": lambda value: {"each.subset": value},
    "dataset_train_split": _split,
    "max_samples": _each_max_samples,
    "mix_strategy": _mix,
    "interleave_probs": _probabilities,
    "chat_template_path": _template_file,
    "bf16": _bf16,
    "quantization_bit": _four_bits,
    "adapter": _qlora,
    "plugins": _plugins,
    "lora_target_linear": _all_linear,
}
"""Another tool's name -> the keys and values it means, or a ValueError with the rule that the value breaks.
`each.KEY` is a key of every entry of data.train_file."""

_8BIT_ADAMW = ("paged_adamw_8bit", "adamw_bnb_8bit")
"""bitsandbytes' other names. The paged one moves moments to the host when the GPU is full; here they are small."""
_TEMPLATES = ("auto", "chat", "alpaca", "plain")
_NAME_OF_A_TEMPLATE = re.compile(r"[\w.+-]+")


def translate_value(target: str, value: Any) -> Keys:
    """Translate a value as other tools write it to the keys and values that it means.

    Raises:
        ValueError: It asks for something that strop would ignore; the message gives the reason.
    """
    if target == "lora.target_modules" and isinstance(value, str):
        names = [name.strip() for name in value.split(",")]
        return {target: "all-linear" if names == ["all"] else names if len(names) > 1 else value}
    if target == "train.gradient_checkpointing" and value == "unsloth":
        return {target: True}
    if target == "train.optim" and value in _8BIT_ADAMW:
        return {target: "adamw_8bit"}
    if target == "data.chat_template" and isinstance(value, str):
        return _chat_template(target, value)
    if target == "data.template" and value not in _TEMPLATES:
        raise ValueError(
            f"must be {', '.join(_TEMPLATES)}; strop uses the model's own chat template, so remove LLaMA-Factory's "
            f"name of it, or set data.chat_template to a file with another one{nearest(str(value), _TEMPLATES)}"
        )
    return {target: value}


def _chat_template(target: str, value: str) -> Keys:
    if value.startswith("tokenizer_default"):  # with tokenizer_default_fallback_X, a model without one is an error here
        return {}
    if value == "jinja":  # the text is under chat_template_jinja
        return {"each.jinja": True}
    if _NAME_OF_A_TEMPLATE.fullmatch(value) and not Path(value).suffix and not Path(value).is_file():
        raise ValueError(
            "names a template of another tool; strop uses the model's own, so remove the key if it is the model's, "
            "or set data.chat_template to a Jinja file or text"
        )
    return {target: value}
