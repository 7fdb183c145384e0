"""One system's process for peers.py: times each setting, loading the model once for Unsloth and each time for TRL.

No part of the trainers is replaced: a callback watches their steps, and the collator's batches are counted.
"""

import gc
import itertools
import json
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Job = dict[str, Any]


def synchronize() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Mark:
    """A moment on the GPU's own clock, taken without waiting for the GPU."""

    def __init__(self) -> None:
        self.at: Any = time.perf_counter()
        if torch.cuda.is_available():
            self.at = torch.cuda.Event(enable_timing=True)
            self.at.record()

    def since(self, earlier: "Mark") -> float:
        if torch.cuda.is_available():
            return earlier.at.elapsed_time(self.at) / 1000
        return self.at - earlier.at


def make_clock(warmup: int, steps: int) -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Times steps warmup + 1 to warmup + steps together; one more step follows for its loss."""

        def __init__(self) -> None:
            self.marks: list[Mark] = []
            self.logs: dict[int, dict[str, float]] = {}
            self.started = self.seconds = self.peak = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == warmup:
                self.started = synchronize()
                self.marks.append(Mark())
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.started and not self.seconds:
                self.marks.append(Mark())
            if state.global_step == warmup + steps:
                self.seconds = synchronize() - self.started
                self.peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            if state.global_step in (1, warmup, warmup + steps, warmup + steps + 1):  # outside the timed window
                control.should_log = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.logs[state.global_step] = {key: float(logs[key]) for key in ("loss", "grad_norm")}

    return Clock()


def count_batches(trainer: Any) -> list[tuple[int, int, int]]:
    """(samples, their tokens, tokens with padding) for each batch that the trainer's own collator makes."""
    counts: list[tuple[int, int, int]] = []
    collator = trainer.data_collator
    inner = getattr(collator, "torch_call", collator)

    def counted(examples: list[dict[str, Any]], *others: Any) -> Any:
        samples = sum(len(example["seq_lengths"]) if "seq_lengths" in example else 1 for example in examples)
        tokens = sum(len(example["input_ids"]) for example in examples)
        batch = inner(examples, *others)
        counts.append((samples, tokens, batch["input_ids"].numel()))
        return batch

    if inner is collator:
        trainer.data_collator = counted
    else:
        collator.torch_call = counted
    return counts


def make_dataset(job: Job, setting: Job) -> Any:
    """Token ids and labels as columns; packed here, with TRL's own packer, so that no trainer prepares them again."""
    from datasets import Dataset

    rows = np.load(job["rows"])
    offsets, per_step = rows["offsets"], setting["batch"] * setting["accumulation"]
    wanted = (job["warmup"] + job["steps"] + 2) * per_step
    if setting["mode"] == "packed":
        wanted = int(wanted * job["max_length"] / offsets[-1] * (len(offsets) - 1) * 1.1)
    spans = list(itertools.pairwise(offsets))[:wanted]
    columns = {"input_ids": rows["ids"], "labels": rows["labels"]}
    dataset = Dataset.from_dict({name: [column[a:b].tolist() for a, b in spans] for name, column in columns.items()})
    if setting["mode"] == "packed":
        from trl import pack_dataset

        dataset = pack_dataset(dataset, job["max_length"], "bfd").shuffle(seed=0)
    dataset._unsloth_truncated_to = job["max_length"]  # Unsloth's mark; without it, rows with ids are padded
    return dataset


def load_unsloth(job: Job, setting: Job) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel  # before anything from transformers

    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=job["max_length"],
        dtype=torch.bfloat16,
        load_in_4bit=job["system"] == "unsloth-recipe",
        **({"load_in_fp8": True} if job["system"] == "unsloth-fp8" else {}),
        use_gradient_checkpointing=setting["checkpointing"],
    )
    model = FastLanguageModel.get_peft_model(
        model,
        **job["lora"],
        lora_dropout=0.0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=setting["checkpointing"],
        random_state=0,
    )
    return model, tokenizer


def load_trl(job: Job, setting: Job) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=torch.bfloat16,
        attn_implementation={"flash": "flash_attention_2", "sdpa": "sdpa"}[setting["attention"]],
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    torch.manual_seed(0)
    lora = LoraConfig(**job["lora"], lora_dropout=0.0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(job["model"])


def train(job: Job, setting: Job, model: Any, tokenizer: Any) -> Job:
    from trl import SFTConfig, SFTTrainer  # after Unsloth, because then this name means Unsloth's trainer

    unsloth, total = job["system"] != "trl", job["warmup"] + job["steps"] + 1
    choice = {"padded": False, "padding-free": True, "packed": True, "recipe": None}[setting["mode"]]
    arguments = SFTConfig(
        output_dir=job["scratch"],
        per_device_train_batch_size=setting["batch"],
        gradient_accumulation_steps=setting["accumulation"],
        max_steps=total,
        **job["train"],
        optim=setting["optim"],
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=bool(setting["checkpointing"]),
        packing=setting["mode"] == "packed",
        padding_free=choice,
        max_length=job["max_length"] if unsloth or setting["mode"] == "packed" else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        use_liger_kernel=not unsloth and torch.cuda.is_available(),
        dataloader_drop_last=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    clock = make_clock(job["warmup"], job["steps"])
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=make_dataset(job, setting),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    counts = count_batches(trainer)
    trainer.train()

    first, last = job["warmup"] * setting["accumulation"], (total - 1) * setting["accumulation"]
    timed = np.array(counts[first:last]).reshape(job["steps"], setting["accumulation"], 3).sum(1)
    samples, tokens, executed = timed.sum(0).tolist()
    times = [b.since(a) for a, b in itertools.pairwise(clock.marks)]
    padding_free = getattr(trainer.data_collator, "padding_free", False)
    refused = " (the trainer padded it)" if choice and not padding_free else ""
    flash = getattr(sys.modules.get("unsloth.models._utils"), "HAS_FLASH_ATTENTION", None)
    return {
        "setting": setting["name"] + refused,
        "samples_per_s": samples / clock.seconds,
        "median_samples_per_s": statistics.median(n / t for n, t in zip(timed[:, 0].tolist(), times, strict=True)),
        "tokens_per_s": tokens / clock.seconds,
        "executed_tokens_per_s": executed / clock.seconds,
        "peak_gib": clock.peak,
        "loss_first": clock.logs[1]["loss"],
        "loss_last": clock.logs[total]["loss"],
        "grad_norm_first": clock.logs[1]["grad_norm"],
        "grad_norm_last": clock.logs[total]["grad_norm"],
        "step_seconds": [round(t, 4) for t in times],
        "trainer": f"{type(trainer).__name__} with {type(trainer.data_collator).__name__}, {padding_free=}",
        "attention": model.config._attn_implementation if flash is None else f"Unsloth with flash_attn: {flash}",
        "checkpointing": any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
    }


def run_setting(job: Job, setting: Job, loaded: list[Any]) -> Job:
    """Load the model if none is loaded, reset the adapter to its initial values, and train."""
    if not loaded:
        model, tokenizer = (load_trl if job["system"] == "trl" else load_unsloth)(job, setting)
        adapter = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        trainable = sum(p.numel() for p in adapter.values())
        assert trainable == job["trainable"], f"{trainable:,} trainable parameters instead of {job['trainable']:,}"
        loaded += [model, tokenizer, adapter]
    model, tokenizer, adapter = loaded
    forward = model.__dict__.get("forward")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter[name])
                parameter.grad = None
    try:
        figures = train(job, setting, model, tokenizer)
    finally:  # accelerate wraps it in each training
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.forward = forward
    if not figures["grad_norm_last"] > 0:
        figures["error"] = f"the gradient norm is {figures['grad_norm_last']}: nothing was trained"
    return figures


def main() -> None:
    job: Job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    loaded: list[Any] = []
    longest = 0.0  # of all settings but the first, which also loads and compiles
    for number, setting in enumerate(job["settings"]):
        result = {"workload": job["workload"], "system": job["system"], "setting": setting["name"]}
        started = time.time()
        if started + longest > job["deadline"]:
            result["error"] = "not run: no time left"
        else:
            try:
                result |= run_setting(job, setting, loaded)
            except torch.OutOfMemoryError:
                result["error"] = "out of memory"
            except Exception:
                result |= {"error": traceback.format_exc(limit=-6)}
        if job["system"] == "trl":
            loaded.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        result["seconds"] = time.time() - started
        longest = max(longest, result["seconds"] if number else 0.0)
        with Path(job["results"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(result, flush=True)


if __name__ == "__main__":
    main()
