"""Keys of other tools that ask for what strop does anyway, or that change no result."""

from typing import Any


class _Anything:
    """Holds every value."""

    def __contains__(self, value: object) -> bool:
        return True


ANYTHING = _Anything()
_NOT_SHARDED = "strop divides each step among GPUs by itself (docs/several-gpus.md), each with the whole base"

UNDERSTOOD: dict[str, tuple[tuple[Any, ...] | _Anything, str]] = {
    "packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "sample_packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "eval_sample_packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "neat_packing": ((True, False), "strop always packs samples, and packing does not change the result"),
    "pad_to_sequence_len": ((True, False), "strop never pads"),
    "padding_free": ((True, False), "strop never pads"),
    "group_by_length": ((False,), "the order of the rows decides the result, and strop shuffles them by the seed"),
    "fp16": ((False,), "use bfloat16 (model.precision)"),
    "tf32": ((True, False), "matrix products run in model.precision"),
    "bnb_4bit_quant_type": (("nf4",), "strop's 4-bit weights are NF4"),
    "bnb_4bit_use_double_quant": ((True,), "strop always quantises NF4's scales too"),
    "load_in_8bit": ((False,), "choose the type with model.precision, or use load_in_4bit"),
    "adapter": (("lora",), "strop trains only LoRA"),
    "finetuning_type": (("lora",), "strop trains only LoRA"),
    "full_finetuning": ((False,), "strop trains only LoRA"),
    "use_peft": ((True,), "strop trains only LoRA"),
    "use_dora": ((False,), "strop trains only LoRA"),
    "peft_use_dora": ((False,), "strop trains only LoRA"),
    "lora_target_linear": ((False,), "name the modules in lora.target_modules"),
    "loftq_config": (({},), "strop begins with a LoRA term of zero"),
    "task_type": (("CAUSAL_LM",), "strop trains only causal language models"),
    "stage": (("sft",), "strop does only supervised fine-tuning"),
    "rl": ((False,), "strop does only supervised fine-tuning"),
    "do_train": ((True,), "strop train always trains"),
    "do_eval": ((True, False), "strop evaluates if rows are held out"),
    "eval_strategy": (("no", "steps"), "train.eval_steps says when strop evaluates"),
    "save_strategy": (("no", "steps"), "train.save_steps says when strop saves"),
    "dataset_dir": (("data",), "dataset_info.json is not read: name the files themselves in data.train_file"),
    "mix_strategy": (("concat",), "strop takes the rows of all files"),
    "mask_history": (
        (False,),
        "strop learns every answer of a row; mark turns with train: false to learn only the last",
    ),
    "enable_thinking": ((), "strop writes reasoning as the chat template does; remove the key"),
    "tool_format": ((), "strop writes tools and calls as the chat template does; remove the key"),
    "truncation_mode": (("keep_start",), "strop cuts long samples at their end; see data.long_samples"),
    "eval_on_each_dataset": ((False,), "`strop evaluate --group-by source` scores each file"),
    "special_tokens": (({},), "strop uses the tokenizer as it is"),
    "eot_tokens": (([],), "strop learns the stop tokens that end the chat template's answers"),
    "dataset_kwargs": (({},), "strop prepares all rows in the same way"),
    "fsdp": (("", []), _NOT_SHARDED),
    "fsdp_config": (({},), _NOT_SHARDED),
    "deepspeed": ((), _NOT_SHARDED),
    "push_to_hub": ((False,), "see docs/exports.md for what a run can be exported to"),
    "resume_from_checkpoint": ((True, False), "strop train resumes a run from its newest checkpoint"),
    "auto_resume_from_checkpoints": ((True, False), "strop train resumes a run from its newest checkpoint"),
    "lora_model_dir": ((), "strop begins with a new adapter; export one merged into its base to train on"),
    "adapter_name_or_path": ((), "strop begins with a new adapter; export one merged into its base to train on"),
    "flash_attention": ((True, False), "strop chooses the attention for the device"),
} | {
    name: (ANYTHING, reason)
    for reason, names in {
        "strop chooses the attention for the device": "flash_attn attn_implementation xformers_attention sdp_attention",
        "strop has kernels of its own": "use_liger_kernel liger_rope liger_rms_norm liger_glu_activation "
        "liger_layer_norm liger_fused_linear_cross_entropy lora_mlp_kernel lora_qkv_kernel lora_o_kernel",
        "strop keeps tokenised rows in a cache of its own": "dataset_prepared_path overwrite_cache tokenized_path",
        "strop reads rows as it needs them": "dataset_processes dataset_num_proc preprocessing_num_workers "
        "preprocessing_batch_size dataloader_num_workers dataset_batch_size streaming dataset_streaming buffer_size",
        "strop reads the model's folder": "model_type tokenizer_type is_llama_derived_model",
        "strop runs no code of a model or data set": "trust_remote_code",
        "train.output_dir, report_to and logging_steps say what strop writes": "wandb_project wandb_entity wandb_watch "
        "wandb_name wandb_run_id wandb_log_model run_name logging_dir plot_loss overwrite_output_dir "
        "logging_first_step",
        "strop's checkpoints can always be resumed": "save_only_model save_safetensors",
        "train.save_steps says when strop saves": "saves_per_epoch",
        "train.eval_steps says when strop evaluates": "evals_per_epoch",
        "the held-out rows are those of data.validation_file": "dataset_test_split",
        "the batch of an evaluation changes no score": "per_device_eval_batch_size eval_batch_size",
        "strop's checkpointing needs none": "gradient_checkpointing_kwargs",
        "strop ends a run whose loss is not finite": "loss_watchdog_threshold loss_watchdog_patience",
        "it changes no result": "strict ddp_timeout remove_unused_columns ignore_pad_token_for_loss weights_only debug "
        "local_rank inference_mode",
    }.items()
    for name in names.split()
}
"""Another tool's key -> the values that agree with what strop does anyway, and why."""
