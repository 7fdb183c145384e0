"""A recipe on Unsloth and TRL's trainer: rows, labels, order, schedule and first adapter are as on strop's own engine.

Unsloth patches transformers when it is imported, so it runs in a process of its own (`unsloth.worker`). This side asks
for one step at a time; the loop, its metrics, evaluations and checkpoints are the same as for every run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load, save_file

from strop.data.store import SampleStore
from strop.errors import OutOfMemoryError, RecipeError, StropError
from strop.microbatch.order import Order
from strop.model.lora import LoraAdapter
from strop.model.pretrained.folder import ModelFolder
from strop.recipe import Recipe, TrainSection
from strop.run.folder import RunFolder
from strop.training.engine import InFlight, Tensors
from strop.training.step import NonFiniteError, StepResult
from strop.unsloth.process import Worker, WorkerFailed, write_job

_QUIET = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The model is already a local folder, and the run is reported to nobody."""

_NOT_INSTALLED = ("ImportError", "ModuleNotFoundError", "NotImplementedError")
"""What a package raises if it does not fit the other packages or the machine."""


def start_worker(
    recipe: Recipe, model: ModelFolder, train: SampleStore, held_out: SampleStore | None, folder: RunFolder
) -> Worker:
    """Write the job into the run folder and start the worker, which then begins to load the model.

    Raises:
        RecipeError: Unsloth is not installed, or cannot run here.
    """
    place = folder.path / "unsloth"
    job = write_job(place, recipe, model, train, held_out)
    return Worker("strop.unsloth.worker", job, place, _QUIET)


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that the worker has finished."""

    done: StepResult
    is_done: bool = True

    def result(self) -> StepResult:
        """See `training.engine.InFlight`."""
        return self.done


class UnslothEngine:
    """An `Engine` whose steps a worker computes.

    Its `chosen` has the precision and the packages' versions, because they may change a result's last digits.
    """

    save_seconds = 60.0
    """The worker first writes parameters and moments to a file."""

    def __init__(
        self, worker: Worker, store: SampleStore, section: TrainSection, load: Callable[[Tensors], LoraAdapter]
    ) -> None:
        """Wait until a worker that was just started has loaded its model.

        Args:
            worker: From `start_worker`.
            store: The training samples.
            section: Of the recipe.
            load: Puts these weights on strop's own decoder, once the worker has left the GPU.

        Raises:
            RecipeError, OutOfMemoryError, StropError: The worker could not load the model.
        """
        self._worker, self._store, self._section, self._load = worker, store, section, load
        self._order = Order.of(section, len(store))
        self._state = worker.log.with_name("state.safetensors").resolve()
        self._begin_with: dict[str, Any] | None = {"step": 0, "state": None, "scalars": {}}
        self._padding_free, self._step = False, 0
        ready = self._expect(worker.answer)
        for read in ("rows.npz", "initial.safetensors"):  # large, and already in the worker's memory
            self._state.with_name(read).unlink()
        self.device: str = ready["device"]
        self.num_trainable: int = ready["num_trainable"]
        self.chosen: Mapping[str, Any] = {"precision": ready["precision"], **ready["versions"]}

    def explain(self) -> list[str]:
        """See `Engine`."""
        names = ("unsloth", "trl", "transformers", "peft", "bitsandbytes")
        versions = ", ".join(f"{name} {self.chosen[name]}" for name in names if name in self.chosen)
        return [
            f"engine: {versions}; frozen weights in {self.chosen['precision']} on {self.device}",
            f"trainable parameters: {self.num_trainable:,}",
        ]

    def launch(self, step: int, learning_rate: float, check_stop: Callable[[], None]) -> InFlight:
        """See `Engine`. The worker already knows each step's learning rate; the step is done when this returns."""
        check_stop()
        self._step = step
        done, samples = self._ask("go"), self._order.samples(step)
        result = self._result(done, samples)
        if not math.isfinite(result.loss + result.grad_norm):
            what = f"the loss is {result.loss}, the gradient norm {result.grad_norm}"
            raise NonFiniteError(what, tuple(samples.tolist()))
        return _Done(result)

    def make_room(self, step: int) -> str:
        """See `Engine`; always raises, because here the recipe sets the size of a microbatch."""
        raise self._out_of_memory(step)

    def evaluate(self) -> float:
        """Mean -log p in nats over the learned tokens of the held-out rows."""
        loss: float = self._ask("evaluate")["nll"]
        return loss

    def generate(
        self, prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
    ) -> list[list[int]]:
        """The greedy continuation of each prompt, up to and including a stop token."""
        details = {"prompts": [list(map(int, prompt)) for prompt in prompts], "stop_ids": sorted(stop_ids)}
        answers: list[list[int]] = self._ask("generate", **details, max_new_tokens=max_new_tokens)["answers"]
        return answers

    def weights(self) -> Tensors:
        """See `Engine`."""
        tensors, _ = self.state()
        return {name: tensor for name, tensor in tensors.items() if name.startswith("lora/")}

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """See `Engine`: the worker's parameters and moments, and the scalars that its optimizer keeps."""
        entries = {"scalars": self._ask("save", path=str(self._state))["scalars"]}
        tensors = load(self._state.read_bytes())  # not memory-mapped, because the file is deleted
        self._state.unlink()
        return tensors, entries

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """See `Engine`."""
        save_file(tensors, self._state)
        self._begin_with = {"step": step, "state": str(self._state), "scalars": entries["scalars"]}

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """See `Engine`."""
        self._worker.close()
        return self._load({name.removeprefix("lora/"): tensor for name, tensor in weights.items()})

    def _result(self, done: dict[str, Any], samples: NDArray[np.int64]) -> StepResult:
        lengths, size = self._store.lengths[samples], self._section.per_device_train_batch_size
        batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        padded = sum(len(batch) * int(batch.max()) for batch in batches)
        return StepResult(
            loss=done["loss"],
            grad_norm=done["grad_norm"],
            num_samples=len(samples),
            num_tokens=int(lengths.sum()),
            num_executed_tokens=int(lengths.sum()) if self._padding_free else padded,
            num_loss_tokens=sum(int(self._store[int(i)].learned[1:].sum()) for i in samples),
            seconds=done["seconds"],
            peak_memory_gib=done.get("peak_memory_gib"),
        )

    def _ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Ask the worker and return its answer; before the first question, tell it to begin training."""
        if self._begin_with is not None:
            begin_with, self._begin_with = self._begin_with, None
            self._padding_free = self._expect(lambda: self._worker.ask("begin", **begin_with))["padding_free"]
            self._state.unlink(missing_ok=True)
        return self._expect(lambda: self._worker.ask(what, **details))

    def _expect(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The worker's answer; a failure is raised as the error that the user should see."""
        try:
            return answer()
        except WorkerFailed as failure:
            raise self._explain(failure) from None

    def _explain(self, failure: WorkerFailed) -> StropError:
        if failure.what == "out of memory":
            return self._out_of_memory(self._step + 1)
        if failure.what == "not finite":
            return NonFiniteError(str(failure), tuple(self._order.samples(self._step).tolist()))
        kind = RecipeError if failure.what in _NOT_INSTALLED else StropError
        return kind(f"Unsloth failed: {failure.what}: {failure}\n{self._worker.last_words()}")

    def _out_of_memory(self, step: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"step {step}: out of memory. Set train.per_device_train_batch_size below "
            f"{self._section.per_device_train_batch_size} and raise train.gradient_accumulation_steps so that the "
            f"batch stays at {self._section.samples_per_step} samples; or set train.gradient_checkpointing=true or "
            "model.load_in_4bit=true."
        )
