"""The key names of Axolotl, TRL, LLaMA-Factory and Unsloth, and what they mean here."""

from collections.abc import Callable
from typing import Any

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
    "max_samples": "data.max_train_samples",
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
    "use_gradient_checkpointing": "train.gradient_checkpointing",
}
"""Another tool's name -> the key it means."""


def _percentage(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError("must be a fraction from 0 up to 1, not a number of rows")
    return ("data.validation_split_percentage", round(float(value) * 100, 9))  # 0.07 * 100 is 7.000000000000001


def _train_on_inputs(value: Any) -> tuple[str, Any]:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return ("data.train_on", "all" if value else "completion")


def _bf16(value: Any) -> tuple[str, Any]:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("must be true, false or auto")
    return ("model.precision", {True: "bfloat16", False: "float32"}.get(value, "auto"))


def _qlora(value: Any) -> tuple[str, Any]:
    if value != "qlora":
        raise ValueError("must be lora or qlora; strop trains only LoRA")
    return ("model.load_in_4bit", True)


def _four_bits(value: Any) -> tuple[str, Any]:
    if value != 4:
        raise ValueError("must be 4; remove it to train in bfloat16")
    return ("model.load_in_4bit", True)


TRANSLATED: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "val_size": _percentage,
    "val_set_size": _percentage,
    "train_on_inputs": _train_on_inputs,
    "train_on_prompt": _train_on_inputs,
    "bf16": _bf16,
    "quantization_bit": _four_bits,
    "adapter": _qlora,
}
"""Another tool's name -> the key and value it means, or a ValueError with the rule that the value breaks."""

UNDERSTOOD: dict[str, tuple[tuple[Any, ...], str]] = {
    "packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "sample_packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "padding_free": ((True, False), "strop never pads"),
    "fp16": ((False,), "use bfloat16 (model.precision)"),
    "tf32": ((True, False), "matrix products run in model.precision"),
    "bnb_4bit_quant_type": (("nf4",), "strop's 4-bit weights are NF4"),
    "bnb_4bit_use_double_quant": ((True,), "strop always quantises NF4's scales too"),
    "load_in_8bit": ((False,), "choose the type with model.precision, or use load_in_4bit"),
    "adapter": (("lora",), "strop trains only LoRA"),
    "finetuning_type": (("lora",), "strop trains only LoRA"),
    "full_finetuning": ((False,), "strop trains only LoRA"),
    "use_peft": ((True,), "strop trains only LoRA"),
    "task_type": (("CAUSAL_LM",), "strop trains only causal language models"),
    "stage": (("sft",), "strop does only supervised fine-tuning"),
    "do_train": ((True,), "strop train always trains"),
    "flash_attention": ((True, False), "strop chooses the attention for the device"),
}
"""Another tool's key -> the values that agree with what strop does anyway, and why."""

_8BIT_ADAMW = ("paged_adamw_8bit", "adamw_bnb_8bit")
"""bitsandbytes' other names. The paged one moves moments to the host when the GPU is full; here they are small."""

_ROW_SHAPES = {"alpaca": "alpaca", "completion": "text", "sharegpt": "sharegpt", "chat_template": None}
_KNOWN_OF_A_DATASET = {"path", "type", "split", "ds_type"}


def translate_value(target: str, value: Any) -> dict[str, Any]:
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
    if target in ("data.train_file", "data.validation_file"):
        items = value if isinstance(value, list) else [value]
        if items and all(isinstance(item, dict) for item in items):
            return _axolotl_datasets(target, items)
    return {target: value}


def _axolotl_datasets(target: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    files, shapes = [], set()
    for item in items:
        if unread := sorted(map(str, item.keys() - _KNOWN_OF_A_DATASET)):
            raise ValueError(f"{', '.join(unread)} of a dataset is not supported; only path, type and split are")
        if not isinstance(item.get("path"), str):
            raise ValueError("every dataset needs a path")
        kind = item.get("type")
        if kind is not None and (not isinstance(kind, str) or kind not in _ROW_SHAPES):
            raise ValueError(f"type {kind} is unknown; known types are {', '.join(_ROW_SHAPES)}")
        split = item.get("split")
        files.append(item["path"] if split in (None, "train") else f"{item['path']}:{split}")
        shapes.add(_ROW_SHAPES[kind] if kind else None)
    if len(shapes) > 1:
        raise ValueError("the datasets have different types; all rows of a recipe must have the same shape")
    shape = shapes.pop()
    return {target: files} | ({"data.format": shape} if shape else {})
