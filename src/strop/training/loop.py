"""The run: steps, evaluations, samples and checkpoints on any engine; however it ends, it can be resumed."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

import torch

from strop.data.store import SampleStore
from strop.errors import BudgetReached, Interrupted, NumericsError, OutOfMemoryError, RankLost
from strop.microbatch.order import Order
from strop.recipe import TrainSection
from strop.run.checkpoint import Checkpoint, checkpoint_path, is_intact, prune, save_checkpoint
from strop.run.cost import Meter
from strop.run.cut_back import cut_metrics, cut_samples, mark_of
from strop.run.folder import RunFolder
from strop.run.progress import LossWatch, Progress, is_due
from strop.run.records import EvalRecord, MetricsLog, Sample, TrainRecord, read_metrics, write_samples
from strop.run.reporter import Reporter
from strop.training.engine import Engine, InFlight, Tensors
from strop.training.loss import NonFiniteError, explain_non_finite
from strop.training.optim import learning_rate
from strop.training.step import StepResult

_T = TypeVar("_T")
_RUN, _RECORDS = "run", "records"
"""Keys of a checkpoint's state: which run it is of, and metrics and samples as they were."""

_EXIT_SECONDS = 5.0
"""Time from the last checkpoint until the container has exited."""


@dataclass
class Trainer:
    """Trains one adapter on one store, starting from its last checkpoint.

    Attributes:
        engine: Computes the steps.
        store: The training samples; errors name them by file:line.
        check_stop: Raises `Interrupted` once a signal has arrived.
        evaluate: Returns the current model's held-out loss; None if there are no held-out rows.
        sample: Returns the current model's answers to held-out questions, for a step's record; None for no samples.
        meter: Counts dollars; None if nothing is billed.
        run_mark: What says which run a checkpoint is of.
    """

    engine: Engine
    store: SampleStore
    section: TrainSection
    folder: RunFolder
    reporter: Reporter
    check_stop: Callable[[], None]
    evaluate: Callable[[], float] | None = None
    sample: Callable[[int], Sequence[Sample]] | None = None
    meter: Meter | None = None
    run_mark: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.num_steps = Order.of(self.section, len(self.store)).num_steps
        self.metrics = MetricsLog(self.folder.metrics_path)
        self._best: Tensors = {}
        self._in_flight: deque[InFlight] = deque()
        self._watch = LossWatch()
        self._started = 0.0
        self._save_seconds, self._step_seconds = self.engine.save_seconds, 0.0

    def check(self) -> None:
        """Called between microbatches; raises if it is time to stop.

        Raises:
            Interrupted: A signal has arrived.
            BudgetReached: The rest of modal.max_cost is needed for the steps in flight, a checkpoint and the exit.
        """
        self.check_stop()
        if self.meter is not None:
            self.meter.check(2 * self._step_seconds + self._save_seconds + _EXIT_SECONDS)

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Resume from a checkpoint: parameters, moments, progress, and metrics and samples up to its step.

        Returns:
            What of metrics and samples is lost, a sentence each.
        """
        known = {item.name for item in fields(Progress)}
        self.progress = Progress(**{key: value for key, value in checkpoint.state.items() if key in known})
        self._best = {name: tensor for name, tensor in checkpoint.tensors.items() if _is_best(name)}
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not _is_best(name)}
        entries = {key: value for key, value in checkpoint.state.items() if key not in known | {_RUN, _RECORDS}}
        self.engine.load_state(self.progress.step, tensors, entries)
        lost = self._cut_back(checkpoint.state.get(_RECORDS) or {})
        records = read_metrics(self.folder.metrics_path)
        self._watch = LossWatch(record.loss for record in records if isinstance(record, TrainRecord))
        return lost

    def start_over(self) -> None:
        """Drop what an attempt that saved no checkpoint has left of metrics and samples."""
        cut_metrics(self.folder.metrics_path, -1, None)
        cut_samples(self.folder.samples_path, -1, None, ())

    def _cut_back(self, marks: Mapping[str, Any]) -> list[str]:
        folder, step = self.folder, self.progress.step
        lost = cut_metrics(folder.metrics_path, step, marks.get("metrics"))
        records = read_metrics(folder.metrics_path)
        evaluated = [record.step for record in records if isinstance(record, EvalRecord) and self.sample is not None]
        return lost + cut_samples(folder.samples_path, step, marks.get("samples"), evaluated)

    def run(self) -> Tensors:
        """Train to the end.

        Returns:
            The final weights or, if the recipe asks for them, the best ones, named as by `Engine.weights`.

        Raises:
            RankLost: A rank has ended. Nothing was saved since the last checkpoint.
            Interrupted: A signal arrived. Here and below, a checkpoint of the last finished step was written.
            BudgetReached: The recipe's cost limit is near.
            NumericsError: A loss or gradient was not finite.
            OutOfMemoryError: Not even the smallest microbatch fits.
        """
        self.reporter.on_start(self.progress.step, self.num_steps)
        try:
            self._train()
        except RankLost:  # no rank can tell whether the others have the same weights
            raise
        except (Interrupted, BudgetReached) as stop:
            self._save()
            raise self.progress.added_to(stop, self.num_steps) from None
        except NonFiniteError as error:
            self._save()
            raise NumericsError(explain_non_finite(self.progress.step + 1, error, self.store)) from None
        except OutOfMemoryError:
            self._save()
            raise
        finally:
            self.reporter.close()
        self._save()
        if self.adapter_step != self.progress.step:
            return {f"lora{name.removeprefix('best')}": tensor for name, tensor in self._best.items()}
        return self.engine.weights()

    @property
    def adapter_step(self) -> int:
        """The step whose weights `run` returns, or would if the run ended now."""
        return self.progress.best_step if self._best else self.progress.step

    def _train(self) -> None:
        """Steps, evaluations and saves. A GPU has one step in flight while the host prepares and launches the next."""
        self._evaluate_if_due()
        waits = iter([self.reporter.waiting("computing the first step")])
        self._started = time.perf_counter()
        while self.progress.step < self.num_steps and not self.progress.stopped_early:
            step = self.progress.step + len(self._in_flight)
            rate = learning_rate(step, self.section, self.num_steps)
            with next(waits, nullcontext()):
                self._in_flight.append(self._retry_smaller(partial(self.engine.launch, step, rate, self.check)))
                self._finish(all_but=0 if self._in_flight[-1].is_done or self._needs_state_after(step + 1) else 1)
            if not self._in_flight:
                self._evaluate_if_due()
                if self.progress.step < self.num_steps and is_due(self.progress.step, self.section.save_steps):
                    self._save()

    def _needs_state_after(self, step: int) -> bool:
        """Whether an evaluation, a checkpoint or the end of the run follows this step."""
        section = self.section
        evaluates = self.evaluate is not None and is_due(step, section.eval_steps)
        return step == self.num_steps or is_due(step, section.save_steps) or evaluates

    def _retry_smaller(self, compute: Callable[[], _T]) -> _T:
        """Call `compute`, with smaller microbatches each time it runs out of memory.

        A step that failed has updated nothing; its gradients are computed again from the same samples.
        """
        while True:
            with suppress(torch.OutOfMemoryError):  # while its traceback lives, it keeps the microbatch's tensors
                return compute()
            self._finish()
            self.reporter.note(self.engine.make_room(self.progress.step + 1))

    def _finish(self, all_but: int = 0) -> None:
        """Wait for and record steps in flight, oldest first, until only `all_but` are left."""
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
            model = "the base model" if self.progress.step == 0 else "the model so far"
            with self.reporter.waiting(f"evaluating {model} on held-out rows"):
                loss = self._retry_smaller(self.evaluate)
            self._write_samples()  # before the loss is recorded: after an interruption here, both are repeated
            self._record_eval(loss)
            self._started = time.perf_counter()

    def _write_samples(self) -> None:
        """Add the current model's answers to samples.jsonl; skipped if they do not fit in the GPU's memory."""
        if self.sample is None:
            return
        step = self.progress.step
        try:
            with self.reporter.waiting("answering some held-out rows"):
                samples = self.sample(step)
        except torch.OutOfMemoryError:
            self.reporter.note(f"step {step}: no samples, because they do not fit in the GPU's memory")
            return
        write_samples(self.folder.samples_path, step, samples)
        self.reporter.on_samples(samples)

    def _record_eval(self, loss: float) -> None:
        """Record a held-out loss, and keep the weights if it is the lowest so far."""
        record = EvalRecord(self.progress.step, loss)
        self.metrics.append(record)
        self.reporter.on_eval(record)
        if self.progress.record_eval(loss, self.section) and self.section.load_best_model_at_end:
            self._best = {f"best{name.removeprefix('lora')}": x for name, x in self.engine.weights().items()}

    def _record(self, result: StepResult, rate: float) -> None:
        dollars = None if self.meter is None else round(self.meter.dollars, 4)
        record = result.record(self.progress.step, rate, dollars)
        self.metrics.append(record)
        self.reporter.on_step(record)
        if warning := self._watch.see(result.loss):
            self.reporter.note(f"step {self.progress.step}: {warning}")

    def _save(self) -> None:
        """Write a checkpoint of the current step, unless it is step 0 or already has one.

        This first waits for steps in flight, because the state on the device is already theirs.
        """
        with suppress(NonFiniteError):
            self._finish()
        step = self.progress.step
        if step == 0:
            return
        if is_intact(checkpoint_path(self.folder.checkpoints, step)):
            prune(self.folder.checkpoints, keep=self.section.save_total_limit)  # a kill may have come between
            return
        began = time.perf_counter()
        tensors, entries = self.engine.state()
        self.metrics.sync()
        marks = {"metrics": mark_of(self.folder.metrics_path), "samples": mark_of(self.folder.samples_path)}
        state = asdict(self.progress) | entries | {_RUN: dict(self.run_mark), _RECORDS: marks}
        save_checkpoint(self.folder.checkpoints, step, tensors | self._best, state)
        prune(self.folder.checkpoints, keep=self.section.save_total_limit)
        self._save_seconds = time.perf_counter() - began
        self.reporter.on_save(step)


def _is_best(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to the best weights so far: `best`, or `best/NAME` for each."""
    return name.partition("/")[0] == "best"
