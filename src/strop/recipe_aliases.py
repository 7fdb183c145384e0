"""The key names of Axolotl, TRL, LLaMA-Factory and Unsloth, and what they are here."""

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
"""Another name -> the key it means."""


def _percentage(value: Any) -> tuple[str, Any] | None:
    share = float(value)
    return ("data.validation_split_percentage", share * 100) if share < 1 else None


def _train_on_inputs(value: Any) -> tuple[str, Any]:
    return ("data.train_on", "all" if value else "completion")


def _bf16(value: Any) -> tuple[str, Any] | None:
    return ("model.precision", "bfloat16") if value is True else None


def _four_bits(value: Any) -> tuple[str, Any] | None:
    return ("model.load_in_4bit", True) if value == 4 else None


TRANSLATED: dict[str, Callable[[Any], tuple[str, Any] | None]] = {
    "val_size": _percentage,
    "val_set_size": _percentage,
    "train_on_inputs": _train_on_inputs,
    "train_on_prompt": _train_on_inputs,
    "bf16": _bf16,
    "quantization_bit": _four_bits,
}
"""Another name -> the key and value it means, or None where its value changes nothing."""

UNDERSTOOD: dict[str, tuple[tuple[Any, ...], str]] = {
    "packing": ((True, False), "samples are always packed here, and packing changes no result"),
    "sample_packing": ((True, False), "samples are always packed here, and packing changes no result"),
    "padding_free": ((True, False), "there is never padding here"),
    "fp16": ((False,), "use bfloat16: model.precision"),
    "tf32": ((True, False), "matrix products run in model.precision"),
    "load_in_8bit": ((False,), "8-bit weights are not supported; model.precision is"),
    "adapter": (("lora",), "only LoRA is trained here"),
    "finetuning_type": (("lora",), "only LoRA is trained here"),
    "full_finetuning": ((False,), "only LoRA is trained here"),
    "use_peft": ((True,), "only LoRA is trained here"),
    "task_type": (("CAUSAL_LM",), "only causal language models are trained here"),
    "stage": (("sft",), "only supervised fine-tuning is done here"),
    "do_train": ((True,), "strop train trains"),
    "flash_attention": ((True, False), "attention is chosen by the device"),
}
"""Another tool's key -> the values that agree with what happens here anyway, and why."""
