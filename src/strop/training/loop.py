"""The run: steps, evaluations, checkpoints, and an end that is always resumable."""

import gc
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch

from strop.data.store import SampleStore
from strop.errors import BudgetReached, Interrupted, NumericsError, OutOfMemoryError
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatches
from strop.model.lora import LoraAdapter
from strop.recipe import TrainSection
from strop.run.checkpoint import Checkpoint, prune, save_checkpoint
from strop.run.cost import Meter
from strop.run.folder import RunFolder
from strop.run.metrics import MetricsLog, read_metrics
from strop.run.reporter import Reporter
from strop.run.samples import Sample, write_samples
from strop.training.budget import tokens_that_fit
from strop.training.gradients import choose_gradients, why_plain
from strop.training.optim import choose_optimizer, learning_rate
from strop.training.progress import Progress, is_due
from strop.training.step import NonFiniteError, StepInFlight, StepResult, explain_non_finite, train_step
from strop.training.watch import LossWatch

_T = TypeVar("_T")

_SAVE_SECONDS = 10.0
"""What a checkpoint may take until one has been measured; 90 million floats took 2 s."""

_EXIT_SECONDS = 5.0
"""From the last checkpoint to the end of the container."""


@dataclass
class Trainer:
    """Trains one adapter on one store, from wherever its last checkpoint left off.

    Attributes:
        evaluate: Held-out loss of the model as it stands; None where there is nothing held out.
        check_stop: Raises `Interrupted` once a signal has come.
        meter: Counts dollars; None where nothing is billed.
        sample: Row, question, reference and answer of held-out rows, by the model as it stands; None for none.
        most_tokens: Tokens of a microbatch that an earlier attempt was left with after it ran out of memory.
    """

    adapter: LoraAdapter
    store: SampleStore
    section: TrainSection
    folder: RunFolder
    reporter: Reporter
    evaluate: Callable[[], float] | None
    check_stop: Callable[[], None]
    progress: Progress = field(default_factory=Progress)
    meter: Meter | None = None
    most_tokens: int | None = None
    sample: Callable[[], list[tuple[str, str, str, str]]] | None = None

    def __post_init__(self) -> None:
        section = self.section
        self.decoder = self.adapter.decoder
        self.decoder.gradient_checkpointing = section.gradient_checkpointing
        self.optimizer = choose_optimizer(self.adapter, section)
        self.gradients = choose_gradients(self.adapter)
        wanted = section.max_tokens_per_microbatch or tokens_that_fit(
            self.gradients, self.decoder.device, self._longest
        )
        self.max_tokens = min(wanted, self.most_tokens or wanted)
        share = self.adapter.section.lora_dropout == 0
        long_from = self.decoder.config.rope.long_from
        order = Order.of(section, len(self.store))
        self.microbatches = Microbatches(self.store, order, self.max_tokens, share, long_from)
        self.num_steps = order.num_steps
        self.metrics = MetricsLog(self.folder.metrics_path)
        self._best: torch.Tensor | None = None
        self._in_flight: deque[StepInFlight] = deque()
        self._watch = LossWatch()
        self._started = 0.0
        self._save_seconds, self._step_seconds = _SAVE_SECONDS, 0.0

    def explain(self) -> list[str]:
        """What was chosen for this GPU and why; nothing is chosen on a CPU."""
        if self.decoder.device.type != "cuda":
            return []
        reason = why_plain(self.adapter)
        layers = f"plain, because {reason}" if reason else "fused kernels, captured as CUDA graphs"
        return [f"layers: {layers}", f"microbatches of up to {self.max_tokens:,} tokens"]

    def check(self) -> None:
        """Asked between microbatches: is it time to stop?

        Raises:
            Interrupted: A signal has come.
            BudgetReached: What is left of modal.max_cost is needed for the steps in flight, a checkpoint and the exit.
        """
        self.check_stop()
        if self.meter is not None:
            self.meter.check(2 * self._step_seconds + self._save_seconds + _EXIT_SECONDS)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: parameters, moments, progress and the metrics up to its step."""
        tensors = dict(checkpoint.tensors)
        self.adapter.flat.copy_(tensors.pop("lora"))
        self._best = tensors.pop("best", None)
        self.optimizer.load_state(tensors)
        self.progress = Progress(**checkpoint.state)
        self.metrics.truncate_after(self.progress.step)
        records = read_metrics(self.folder.metrics_path)
        self._watch = LossWatch(record["loss"] for record in records if record["kind"] == "train")

    def run(self) -> None:
        """Train to the end, leaving the adapter with the final or, if the recipe says so, the best weights.

        Raises:
            Interrupted: A signal came; a checkpoint of the last finished step was written.
            BudgetReached: The recipe's limit of dollars is near; likewise.
            NumericsError: A loss or gradient was not finite; likewise.
            OutOfMemoryError: Not even the smallest microbatch fits; likewise.
        """
        self.reporter.on_start(self.progress.step, self.num_steps)
        self.decoder.train()
        try:
            self._train()
        except (Interrupted, BudgetReached) as stop:
            self._save()
            raise self.progress.told(stop, self.num_steps) from None
        except NonFiniteError as error:
            self._save()
            raise NumericsError(explain_non_finite(self.progress.step + 1, error, self.store)) from None
        except OutOfMemoryError:
            self._save()
            raise
        finally:
            self.reporter.close()
        self._save()
        if self.section.load_best_model_at_end and self._best is not None:
            self.adapter.flat.copy_(self._best)

    def _train(self) -> None:
        """Steps, evaluations and saves. A GPU has one step in flight while the host prepares and launches the next."""
        self._evaluate_if_due()
        self._started = time.perf_counter()
        while self.progress.step < self.num_steps and not self.progress.stopped_early:
            step = self.progress.step + len(self._in_flight)
            self._in_flight.append(self._fitting(partial(self._launch, step)))
            self._finish(all_but=0 if self._in_flight[-1].is_done or self._is_stop(step + 1) else 1)
            if not self._in_flight:
                self._evaluate_if_due()
                if self.progress.step < self.num_steps and is_due(self.progress.step, self.section.save_steps):
                    self._save()

    def _is_stop(self, step: int) -> bool:
        """Whether the host needs the state after this step."""
        section = self.section
        evaluates = self.evaluate is not None and is_due(step, section.eval_steps)
        return step == self.num_steps or is_due(step, section.save_steps) or evaluates

    def _launch(self, step: int) -> StepInFlight:
        section = self.section
        torch.manual_seed(dropout_seed(section.seed, step))
        rate = learning_rate(step, section, self.num_steps)
        microbatches = self.microbatches.of_step(step)
        return train_step(self.gradients, self.optimizer, microbatches, rate, section.max_grad_norm, self.check)

    def _fitting(self, compute: Callable[[], _T]) -> _T:
        """What `compute` gives, with microbatches half as large after each time that memory runs out.

        A step that failed has updated nothing: its gradients are zeroed and added up again from the same samples.
        """
        while True:
            with suppress(torch.OutOfMemoryError):  # whose traceback, while it lives, holds the microbatch's tensors
                return compute()
            self._halve()

    def _halve(self) -> None:
        self._finish()
        if self.max_tokens <= self._longest:
            raise OutOfMemoryError(self._explain_out_of_memory())
        before, self.max_tokens = self.max_tokens, max(self.max_tokens // 2, self._longest)
        self.microbatches = replace(self.microbatches, max_tokens=self.max_tokens)
        gc.collect()  # the frames of what failed may lie in a cycle, and with them its tensors
        self.gradients.release()
        self.folder.update_manifest(max_tokens_per_microbatch=self.max_tokens)
        self.reporter.note(
            f"step {self.progress.step + 1}: out of memory with microbatches of up to {before:,} tokens; going on with "
            f"{self.max_tokens:,}. The batch of {self.section.samples_per_step} samples stays what it is"
        )

    @property
    def _longest(self) -> int:
        """Tokens of the longest sample: no microbatch can be made smaller."""
        return int(self.store.lengths.max())

    def _finish(self, all_but: int = 0) -> None:
        """Wait for steps in flight, the oldest first, until so many are left, and record them."""
        while len(self._in_flight) > all_but:
            try:
                result = self._in_flight.popleft().result()
            except NonFiniteError:
                self._in_flight.clear()  # the device has skipped their updates too
                raise
            self._account(result)

    def _account(self, result: StepResult) -> None:
        now, progress = time.perf_counter(), self.progress
        self._step_seconds = now - self._started
        progress.seconds += self._step_seconds
        self._started = now
        rate = learning_rate(progress.step, self.section, self.num_steps)
        progress.step += 1
        progress.num_tokens += result.num_tokens
        self._record(result, rate)

    def _evaluate_if_due(self) -> None:
        if self.evaluate is not None and self.progress.evaluation_is_due(self.section, self.num_steps):
            loss = self._fitting(self.evaluate)
            self._answer()  # before the loss is taken in: interrupted here, both are made again
            self._take_in(loss)
            self.decoder.train()
            self._started = time.perf_counter()

    def _answer(self) -> None:
        """Samples of the model as it stands, into samples.jsonl; a GPU too full for them goes without."""
        if self.sample is None:
            return
        step = self.progress.step
        try:
            samples = [Sample(step, *answer) for answer in self.sample()]
        except torch.OutOfMemoryError:
            self.reporter.note(f"step {step}: no samples, because they do not fit in the GPU's memory")
            return
        write_samples(self.folder.samples_path, step, samples)
        self.reporter.on_samples(samples)

    def _take_in(self, loss: float) -> None:
        """Record a held-out loss and judge it: the best so far, or reason to stop early."""
        self.metrics.append({"kind": "eval", "step": self.progress.step, "eval_loss": loss})
        self.reporter.on_eval(self.progress.step, loss)
        if self.progress.judge(loss, self.section) and self.section.load_best_model_at_end:
            self._best = self.adapter.flat.detach().cpu().clone()

    def _record(self, result: StepResult, rate: float) -> None:
        record = result.record(self.progress.step, rate)
        if self.decoder.device.type == "cuda":
            record["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.decoder.device) / 2**30
        if self.meter is not None:
            record["dollars"] = round(self.meter.dollars, 4)
        self.metrics.append(record)
        self.reporter.on_step(record)
        if warning := self._watch.see(result.loss):
            self.reporter.note(f"step {self.progress.step}: {warning}")

    def _save(self) -> None:
        """Write a checkpoint of the current step, unless nothing was trained yet or it is there already.

        Steps still in flight are waited for: the state on the device is already theirs.
        """
        with suppress(NonFiniteError):
            self._finish()
        step = self.progress.step
        if step == 0 or self.folder.has_checkpoint(step):
            return
        began = time.perf_counter()
        tensors = {"lora": self.adapter.flat.detach().cpu(), **self.optimizer.state()}
        if self._best is not None:
            tensors["best"] = self._best
        save_checkpoint(self.folder.checkpoints, step, tensors, asdict(self.progress))
        prune(self.folder.checkpoints, keep=self.section.save_total_limit)
        self._save_seconds = time.perf_counter() - began
        self.reporter.on_save(step)

    def _explain_out_of_memory(self) -> str:
        return (
            f"step {self.progress.step + 1}: a microbatch of {self.max_tokens} tokens does not fit in the GPU's "
            f"memory, and the longest sample has {self._longest}. Set train.gradient_checkpointing=true or a smaller "
            "model.max_seq_length, or take a GPU with more memory: `strop plan` says which."
        )


def dropout_seed(seed: int, step: int) -> int:
    """Dropout's draws are a function of seed and step, so a resumed run draws what an undisturbed one does.

    A single 32-bit number, because torch's CPU generator ignores a seed's upper half.
    """
    return zlib.crc32(f"{seed}/{step}".encode())
