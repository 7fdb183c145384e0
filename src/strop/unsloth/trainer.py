"""A recipe on Unsloth and TRL's trainer: the same rows, labels, order, schedule and first adapter as on strop's engine.

Unsloth patches transformers when it is imported, so it runs in a process of its own (`unsloth_worker`). This side asks
it for one step after the other and keeps the run: metrics, evaluations, checkpoints, its end.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save_file
from torch import Tensor

from strop.data.store import SampleStore
from strop.errors import BudgetReached, Interrupted, NumericsError, OutOfMemoryError, RecipeError, StropError
from strop.microbatch.order import Order
from strop.recipe import Recipe, TrainSection
from strop.run.checkpoint import Checkpoint, prune, save_checkpoint
from strop.run.cost import Meter
from strop.run.folder import RunFolder
from strop.run.metrics import MetricsLog
from strop.run.reporter import Reporter
from strop.training.progress import Progress, is_due
from strop.training.step import NonFiniteError, StepResult, explain_non_finite
from strop.unsloth.job import write_job
from strop.unsloth.process import Worker, WorkerFailed

_QUIET = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The model is a local folder by now, and nobody is told of the run."""

_SAVE_SECONDS = 60.0
"""Left before `modal.max_cost` for a step, a checkpoint and the end."""

_NOT_INSTALLED = ("ImportError", "ModuleNotFoundError", "NotImplementedError")
"""What a package raises that does not fit the others, or the machine."""


def start_worker(
    recipe: Recipe, model_folder: Path, train: SampleStore, held_out: SampleStore | None, folder: RunFolder
) -> Worker:
    """Write the job into the run folder and start the worker, which then loads the model.

    Raises:
        RecipeError: Unsloth is not installed, or cannot run here.
    """
    place = folder.path / "unsloth"
    job = write_job(place, recipe, model_folder, train, held_out)
    return Worker("strop.unsloth.worker", job, place, _QUIET)


@dataclass
class UnslothTrainer:
    """Leads the worker through a run; to the rest of strop what `training.loop.Trainer` is.

    Attributes:
        worker: Just started.
        store: The training samples.
        held_out: Whether the job has held-out rows.
        check_stop: Raises `Interrupted` once a signal has come.
        device: The worker's, by name.
        chosen: The precision, and the versions of the packages: what may change a result in its last digits.
        num_trainable: Parameters that are trained.
        meter: Counts dollars; None where nothing is billed.
    """

    worker: Worker
    store: SampleStore
    held_out: bool
    section: TrainSection
    folder: RunFolder
    reporter: Reporter
    check_stop: Callable[[], None]
    progress: Progress = field(default_factory=Progress)
    meter: Meter | None = None

    def __post_init__(self) -> None:
        section = self.section
        self.order = Order.of(section, len(self.store))
        self.num_steps = self.order.num_steps
        self.metrics = MetricsLog(self.folder.metrics_path)
        self._begin_with: dict[str, Any] = {"step": 0, "state": None, "scalars": {}}
        self._best: dict[str, Tensor] = {}
        self._state = self.worker.log.with_name("state.safetensors").resolve()
        self._padding_free = False
        ready = self._expect(self.worker.answer)
        for read in ("rows.npz", "initial.safetensors"):  # large, and in the worker's memory by now
            self._state.with_name(read).unlink()
        self.device: str = ready["device"]
        self.num_trainable: int = ready["num_trainable"]
        self.chosen: dict[str, str] = {"precision": ready["precision"], **ready["versions"]}

    def explain(self) -> list[str]:
        """What the steps are computed with."""
        names = ("unsloth", "trl", "transformers", "peft", "bitsandbytes")
        versions = ", ".join(f"{name} {self.chosen[name]}" for name in names if name in self.chosen)
        return [
            f"engine: {versions}; frozen weights in {self.chosen['precision']} on {self.device}",
            f"trainable parameters: {self.num_trainable:,}",
        ]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: parameters, moments, progress and the metrics up to its step."""
        state = dict(checkpoint.state)
        scalars = state.pop("scalars")
        tensors = dict(checkpoint.tensors)
        self._best = {
            name.removeprefix("best/"): tensors.pop(name) for name in list(tensors) if name.startswith("best/")
        }
        save_file(tensors, self._state)
        self._begin_with = {"step": checkpoint.step, "state": str(self._state), "scalars": scalars}
        self.progress = Progress(**state)
        self.metrics.truncate_after(self.progress.step)

    def run(self) -> dict[str, Tensor]:
        """Train to the end.

        Returns:
            The final or, if the recipe says so, the best adapter, under PEFT's names.

        Raises:
            Interrupted: A signal came; a checkpoint of the last finished step was written.
            NumericsError: A loss or gradient was not finite; likewise.
            OutOfMemoryError: A batch did not fit; likewise.
        """
        self.reporter.on_start(self.progress.step, self.num_steps)
        try:
            self._padding_free = self._ask("begin", **self._begin_with)["padding_free"]
            self._state.unlink(missing_ok=True)
            self._train()
        except (Interrupted, BudgetReached) as stop:
            self._save()
            raise self.progress.told(stop, self.num_steps) from None
        except (NumericsError, OutOfMemoryError):
            self._save()
            raise
        finally:
            self.reporter.close()
        self._save()
        best = self._best if self.section.load_best_model_at_end else {}
        return best or self._weights()

    def _train(self) -> None:
        self._evaluate_if_due()
        while self.progress.step < self.num_steps and not self.progress.stopped_early:
            self.check_stop()
            if self.meter is not None:
                self.meter.check(_SAVE_SECONDS)
            self._step()
            self._evaluate_if_due()
            if self.progress.step < self.num_steps and is_due(self.progress.step, self.section.save_steps):
                self._save()

    def _step(self) -> None:
        done, progress = self._ask("go"), self.progress
        samples = self._samples()
        result = self._result(done, samples)
        if not math.isfinite(result.loss + result.grad_norm):
            raise NumericsError(
                f"step {progress.step + 1}: the loss is {result.loss}, the gradient norm {result.grad_norm}"
            )
        progress.step += 1
        progress.seconds += result.seconds
        progress.num_tokens += result.num_tokens
        record = result.record(progress.step, done["learning_rate"])
        if "peak_memory_gib" in done:
            record["peak_memory_gib"] = done["peak_memory_gib"]
        if self.meter is not None:
            record["dollars"] = round(self.meter.dollars, 4)
        self.metrics.append(record)
        self.reporter.on_step(record)

    def _result(self, done: dict[str, Any], samples: NDArray[np.int64]) -> StepResult:
        lengths, size = self.store.lengths[samples], self.section.per_device_train_batch_size
        batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        padded = sum(len(batch) * int(batch.max()) for batch in batches)
        return StepResult(
            loss=done["loss"],
            grad_norm=done["grad_norm"],
            num_samples=len(samples),
            num_tokens=int(lengths.sum()),
            num_executed_tokens=int(lengths.sum()) if self._padding_free else padded,
            num_loss_tokens=sum(int(self.store[int(i)].learned[1:].sum()) for i in samples),
            seconds=done["seconds"],
        )

    def _samples(self) -> NDArray[np.int64]:
        """Those of the step that comes next."""
        return self.order.samples(self.progress.step)

    def _evaluate_if_due(self) -> None:
        if self.held_out and self.progress.evaluation_is_due(self.section, self.num_steps):
            loss = self._ask("evaluate")["nll"]
            self.metrics.append({"kind": "eval", "step": self.progress.step, "eval_loss": loss})
            self.reporter.on_eval(self.progress.step, loss)
            if self.progress.judge(loss, self.section) and self.section.load_best_model_at_end:
                self._best = self._weights()

    def _save(self) -> None:
        """Write a checkpoint of the current step, unless nothing was trained yet or it is there already."""
        step = self.progress.step
        if step == 0 or self.folder.has_checkpoint(step):
            return
        tensors, scalars = self._fetch()
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        save_checkpoint(self.folder.checkpoints, step, tensors, asdict(self.progress) | {"scalars": scalars})
        prune(self.folder.checkpoints, keep=self.section.save_total_limit)
        self.reporter.on_save(step)

    def _fetch(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Parameters and moments as the worker has them, and the numbers that its optimizer keeps."""
        scalars = self._ask("save", path=str(self._state))["scalars"]
        tensors = load(self._state.read_bytes())  # not mapped: the file goes
        self._state.unlink()
        return tensors, scalars

    def _weights(self) -> dict[str, Tensor]:
        tensors, _ = self._fetch()
        return {name.removeprefix("lora/"): tensor for name, tensor in tensors.items() if name.startswith("lora/")}

    def _ask(self, what: str, **details: Any) -> dict[str, Any]:
        return self._expect(lambda: self.worker.ask(what, **details))

    def _expect(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """An answer, or the error that a person should see in its place."""
        try:
            return answer()
        except WorkerFailed as failure:
            raise self._explain(failure) from None

    def _explain(self, failure: WorkerFailed) -> StropError:
        step = self.progress.step + 1
        if failure.what == "out of memory":
            return OutOfMemoryError(
                f"step {step}: out of memory. Set train.per_device_train_batch_size to less than "
                f"{self.section.per_device_train_batch_size} and train.gradient_accumulation_steps so that the batch "
                f"stays at {self.section.samples_per_step} samples, or train.gradient_checkpointing=true, or "
                "model.load_in_4bit=true."
            )
        if failure.what == "not finite":
            samples = tuple(self._samples().tolist())
            return NumericsError(explain_non_finite(step, NonFiniteError(str(failure), samples), self.store))
        kind = RecipeError if failure.what in _NOT_INSTALLED else StropError
        return kind(f"Unsloth could not do it: {failure.what}: {failure}\n{self.worker.last_words()}")
