"""The process that trains on Unsloth: python -m strop.unsloth.worker JOB.json, started by `unsloth.engine`.

Importing Unsloth patches transformers, PEFT and TRL, so only this module imports it, and this module imports nothing
from strop. Each line of JSON on standard input is a request, and a line on standard output answers it. Whatever the
libraries print goes to standard error, which is the log.

    request                    answer
                               ready {device, precision, versions, num_trainable}, once the model is loaded
    begin {step, state, scalars}
                               begun {padding_free}, with the parameters and moments that `save` wrote, or fresh ones
    go                         step {loss, grad_norm, seconds, peak_memory_gib}
    evaluate                   evaluated {nll}: mean over the learned tokens of the held-out rows
    generate {prompts, stop_ids, max_new_tokens}
                               generated {answers}: ids after each prompt, up to and including a stop token
    save {path}                saved {scalars}: tensors in the file; numbers that the optimizer keeps, in the answer
    stop, or end of input      the process ends

Any answer may be `failed {what, message}` instead. Parameters and moments are then those of the last step and can still
be saved.

The job, which `unsloth.process` writes:

    loader                     unsloth, or transformers: a stand-in without Unsloth, which runs on any machine
    model, adapter, rows       paths: the model folder, LoRA's first values under PEFT's names, and the samples (.npz)
    dtype, load_in_4bit, max_seq_length, gradient_checkpointing, seed, lora
    trainer                    arguments that SFTConfig takes unchanged
"""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save_file

Job = dict[str, Any]
Loaded = tuple[Any, Any, type[Any]]
Message = dict[str, Any]
PACKAGES = ("unsloth", "unsloth_zoo", "trl", "transformers", "peft", "accelerate", "bitsandbytes")


class Stopped(Exception):
    """strop asked this process to end, or is gone."""


class NotFinite(Exception):
    """A gradient is not finite; the update was skipped."""


def load_unsloth(job: Job) -> Loaded:
    """The model with LoRA, its tokenizer and TRL's trainer, all patched by Unsloth."""
    from unsloth import FastLanguageModel  # before anything from transformers and TRL

    checkpointing = "unsloth" if job["gradient_checkpointing"] else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=job["max_seq_length"],
        dtype=getattr(torch, job["dtype"]),
        load_in_4bit=job["load_in_4bit"],
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model, **job["lora"], use_gradient_checkpointing=checkpointing, random_state=job["seed"]
    )
    from trl import SFTTrainer  # by now this name means Unsloth's trainer

    return model, tokenizer, SFTTrainer


def load_stand_in(job: Job) -> Loaded:
    """The same from unpatched transformers, PEFT and TRL, on a GPU or a CPU."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
    from trl import SFTTrainer

    class PlainLoss(SFTTrainer):
        """Uses the model's own loss, as Unsloth's trainer does; TRL's is a Triton kernel and needs a GPU."""

        compute_loss = Trainer.compute_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).to(device)
    lora = LoraConfig(**job["lora"], task_type="CAUSAL_LM")
    return get_peft_model(model, lora), AutoTokenizer.from_pretrained(job["model"]), PlainLoss


LOADERS: dict[str, Callable[[Job], Loaded]] = {"unsloth": load_unsloth, "transformers": load_stand_in}


class Channel:
    """The two pipes to strop."""

    def __init__(self) -> None:
        # From here on, everything that is printed goes to the log.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, answer: str, **what: Any) -> None:
        """Send an answer; if nobody is listening any more, the resulting error ends the process."""
        print(json.dumps({"answer": answer, **what}), file=self._answers, flush=True)

    def receive(self) -> Message:
        """Wait for the next request; raises `Stopped` on `stop` or at the end of input."""
        line = sys.stdin.readline()
        request: Message = json.loads(line) if line else {"ask": "stop"}
        if request["ask"] == "stop":
            raise Stopped
        return request


class Session:
    """A loaded model, its trainer once training has begun, and the answers to requests about them."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self.job, self.channel = job, channel
        self.model, self.tokenizer, self.trainer_class = LOADERS[job["loader"]](job)
        # Named as PEFT writes them: without the adapter's name.
        named = {name.replace(".default.", "."): p for name, p in self.model.named_parameters() if p.requires_grad}
        first = _read(job["adapter"])
        if first.keys() != named.keys():
            differ = sorted(first.keys() ^ named.keys())
            raise RuntimeError(
                f"LoRA is on other modules than strop's: {len(differ)} tensors differ, such as {differ[0]}"
            )
        self.parameters: dict[str, torch.nn.Parameter] = named
        self.rows = dict(np.load(job["rows"]))
        self.trainer: Any = None
        self._set_parameters(first)

    def train(self, step: int, state: str | None, scalars: dict[str, dict[str, Any]]) -> None:
        """Train from `step` on, one step for each request, with the state that `save` wrote or a fresh one."""
        self.trainer = self._make_trainer(step, state, scalars)
        try:
            self.trainer.train()
        except torch.OutOfMemoryError as error:
            self.channel.send("failed", what="out of memory", message=str(error))
        except NotFinite as error:
            self.channel.send("failed", what="not finite", message=str(error))

    def _make_trainer(self, step: int, state: str | None, scalars: dict[str, dict[str, Any]]) -> Any:
        """The trainer for the steps from `step` on.

        In TRL 1.15 and in Unsloth's loss, a microbatch's loss is its sum divided by the learned tokens of the whole
        step (`num_items_in_batch`), and the trainer logs the sum of these: strop's loss. The count excludes a sample's
        first token, which nothing predicts; its label is -100 here, so that padding-free batches agree.
        """
        from transformers import PrinterCallback
        from trl import SFTConfig

        settings = self.job["trainer"]
        per_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        order = self.rows["order"][step * per_step :]
        if not len(order):  # nothing is left to train, but there is something to evaluate
            order = self.rows["order"]
        held_out = self._dataset("held_out") if len(self.rows["held_out_offsets"]) > 1 else None
        arguments = SFTConfig(
            **settings,
            max_steps=max(1, len(self.rows["rates"]) - step),
            lr_scheduler_type="constant",  # the callback sets each step's rate
            per_device_eval_batch_size=settings["per_device_train_batch_size"],
            gradient_checkpointing=self.job["gradient_checkpointing"],
            bf16=self.job["dtype"] == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            max_length=self.job["max_seq_length"],
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=self.job["seed"],
        )
        trainer = self.trainer_class(
            model=self.model,
            args=arguments,
            train_dataset=self._dataset("train", order),
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            callbacks=[_steps_of(self, step, state, scalars)],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _dataset(self, part: str, order: NDArray[np.int64] | None = None) -> Any:
        """A table of the samples' ids and labels, without copying them; `order` may repeat samples."""
        import pyarrow as pa
        from datasets import Dataset
        from datasets.table import InMemoryTable

        offsets = pa.array(self.rows[f"{part}_offsets"], pa.int64())
        columns = {
            name: pa.LargeListArray.from_arrays(offsets, pa.array(self.rows[f"{part}_{name}"]))
            for name in ("input_ids", "labels")
        }
        dataset = Dataset(InMemoryTable(pa.table(columns)), fingerprint=f"strop-{part}")
        if order is not None:
            dataset = dataset.select(order, new_fingerprint=f"strop-{part}-in-order")
        # Unsloth's own mark for rows that are already truncated; without it, Unsloth pads rows that have ids.
        dataset._unsloth_truncated_to = self.job["max_seq_length"]
        return dataset

    def restore(self, state: str, scalars: dict[str, dict[str, Any]]) -> None:
        """Load the parameters and moments that `save` wrote."""
        tensors = _read(state)
        self._set_parameters({name: tensors.pop(f"lora/{name}") for name in self.parameters})
        moments: dict[str, dict[str, Any]] = {name: dict(scalars.get(name, {})) for name in self.parameters}
        for path, tensor in tensors.items():
            name, _, key = path.removeprefix("moments/").rpartition("/")
            moments[name][key] = tensor
        optimizer = self.trainer.optimizer
        names = {id(p): name for name, p in self.parameters.items()}
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        state_of = {index: moments[name] for index, name in enumerate(order)}
        optimizer.load_state_dict({"state": state_of, "param_groups": optimizer.state_dict()["param_groups"]})

    def save(self, path: str) -> dict[str, dict[str, Any]]:
        """Write parameters and moments to a file; returns the optimizer's scalars by parameter."""
        tensors = {f"lora/{name}": p.detach() for name, p in self.parameters.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.trainer.optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    tensors[f"moments/{name}/{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
        return scalars

    def evaluate(self) -> float:
        """Mean -log p in nats over the learned tokens of all held-out rows, however they are batched."""
        total, count = 0.0, 0
        self.model.eval()
        for inputs in self.trainer.get_eval_dataloader():
            learned = int(inputs["labels"][:, 1:].ne(-100).sum())
            loss, _, _ = self.trainer.prediction_step(self.model, inputs, prediction_loss_only=True)
            total, count = total + float(loss) * learned, count + learned
        self.model.train()
        return total / count

    def generate(self, prompts: list[list[int]], stop_ids: list[int], max_new_tokens: int) -> list[list[int]]:
        """The greedy continuation of each prompt, up to and including a stop token.

        Each token takes a whole forward, the same one that `evaluate` uses: Unsloth's kernels for generation would have
        to be switched on and off around it.
        """
        device = next(iter(self.parameters.values())).device
        answers = []
        self.model.eval()
        with torch.no_grad(), self.trainer.accelerator.autocast():
            for prompt in prompts:
                ids = list(prompt)
                longest = min(len(prompt) + max_new_tokens, self.job["max_seq_length"])
                while len(ids) < longest and (len(ids) == len(prompt) or ids[-1] not in stop_ids):
                    logits = self.model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
                    ids.append(int(logits[0, -1].argmax()))
                answers.append(ids[len(prompt) :])
        self.model.train()
        return answers

    def serve(self) -> None:
        """Answer requests until one asks for a step; raises `Stopped` if asked to end."""
        while (request := self.channel.receive())["ask"] != "go":
            if request["ask"] == "evaluate":
                self.channel.send("evaluated", nll=self.evaluate())
            elif request["ask"] == "save":
                self.channel.send("saved", scalars=self.save(request["path"]))
            elif request["ask"] == "generate":
                wanted = {key: request[key] for key in ("prompts", "stop_ids", "max_new_tokens")}
                self.channel.send("generated", answers=self.generate(**wanted))

    def _set_parameters(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


def _steps_of(session: Session, first: int, saved: str | None, scalars: dict[str, dict[str, Any]]) -> Any:
    """The callback that starts and reports the trainer's steps; no part of the trainer is replaced."""
    from transformers import TrainerCallback

    rates, seeds = session.rows["rates"], session.rows["seeds"]

    class Steps(TrainerCallback):
        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if saved is not None:
                session.restore(saved, scalars)
            session.channel.send("begun", padding_free=getattr(session.trainer.data_collator, "padding_free", False))
            self._wait()

        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] = float(rates[first + state.global_step])
            torch.manual_seed(int(seeds[first + state.global_step]))  # dropout's

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in session.parameters.values() if p.grad is not None])
            if not math.isfinite(norm):
                raise NotFinite(f"the gradient norm is {float(norm)}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:  # the summary at the end
                return
            figures = {key: float(logs[key]) for key in ("loss", "grad_norm")}
            seconds = time.perf_counter() - self.began
            if torch.cuda.is_available():
                figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            session.channel.send("step", seconds=seconds, **figures)
            self._wait()

        def _wait(self) -> None:
            session.serve()
            self.began = time.perf_counter()

    return Steps()


def main() -> None:
    """Load, train, and end when asked to or when strop is gone."""
    job: Job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    channel = Channel()
    try:
        session = Session(job, channel)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        num_trainable = sum(p.numel() for p in session.parameters.values())
        precision = "nf4" if job["load_in_4bit"] else job["dtype"]
        channel.send("ready", device=device, precision=precision, versions=_versions(), num_trainable=num_trainable)
        request = channel.receive()
        session.train(request["step"], request["state"], request["scalars"])
        session.serve()  # after a failure the state can still be saved
    except (Stopped, BrokenPipeError):
        return
    except Exception as error:
        traceback.print_exc()
        what = "out of memory" if isinstance(error, torch.OutOfMemoryError) else type(error).__name__
        channel.send("failed", what=what, message=str(error))
        sys.exit(1)


def _read(path: str) -> dict[str, torch.Tensor]:
    """A file's tensors, in memory: `load_file` would map the file, which may be overwritten."""
    tensors: dict[str, torch.Tensor] = load(Path(path).read_bytes())
    return tensors


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    main()
