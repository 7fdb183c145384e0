"""One attempt at a run, on any engine: what it starts from, how it ends, and what it cost."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from strop.commands.card import keep_card
from strop.commands.run import Run
from strop.errors import BudgetReached, Interrupted, StorageError, StropError
from strop.model.pretrained.locate import shared_name
from strop.recipe import Recipe
from strop.run.adapter import CARD_FILE, hashes
from strop.run.cost import enter_cost
from strop.run.cut_back import mark_of
from strop.run.durable import reason
from strop.run.identity import of_another_run, run_mark
from strop.run.manifest import Estimate, HeldOutRows, Lengths, SourceRows, SpeedLimit, TrainingRows
from strop.run.records import TrainRecord, last_steps

if TYPE_CHECKING:
    from strop.commands.prepare import Prepared
    from strop.data.audit import AuditReport, StoreReport
    from strop.forecast.prediction import Outcome
    from strop.model.lora import LoraAdapter
    from strop.parallel.meeting import Meeting
    from strop.run.checkpoint import Checkpoint, Rejected
    from strop.run.cost import Meter
    from strop.run.folder import RunFolder
    from strop.run.reporter import Reporter
    from strop.training.engine import Engine
    from strop.training.loop import Trainer


class StopSignals:
    """Within its context, remembers the first signal to stop; `check` raises it where the state is consistent.

    A handler that raised immediately could strike inside the optimizer's update or a file write. Nothing is lost by
    waiting for the next microbatch: the step in progress has not changed any parameter yet.

    The signals are SIGINT, SIGTERM, and SIGHUP of a terminal that closes, unless it is ignored, as under nohup.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # other threads may not set handlers
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self._received is not None:
            raise Interrupted(f"stopped by {self._received}")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number).name


@dataclass(frozen=True)
class Attempt:
    """A recipe about to be trained in its run folder.

    Attributes:
        prepared: Its model folder and data.
        fingerprints: Of model and data; they must be the same in a later attempt.
        meter: Counts dollars; None if nothing is billed.
        stop: Remembers signals to stop.
        meeting: The ranks that share the work; they are a team by now.
    """

    recipe: Recipe
    prepared: Prepared
    fingerprints: Mapping[str, str]
    folder: RunFolder
    reporter: Reporter
    meter: Meter | None
    stop: StopSignals
    meeting: Meeting

    def begin(
        self,
        engine: Engine,
        num_steps: int,
        sharing_ratio: float | None = None,
        plan: Estimate | None = None,
        limit: SpeedLimit | None = None,
    ) -> list[str]:
        """Record recipe, data and this attempt in the run folder.

        Args:
            engine: Computes the steps.
            num_steps: Steps of the whole run.
            sharing_ratio: The rows' tokens per computed token; None if unknown.
            plan: The prediction for this device.
            limit: The speed limit that a step's throughput is compared with.

        Returns:
            One line for each difference from the previous attempt.
        """
        folder, data = self.folder, self.prepared.data
        _require_room(folder, engine.num_trainable)
        if folder.manifest is None:
            folder.write_recipe(self.recipe.to_yaml())
        changes = folder.begin_attempt(
            device=engine.device,
            chosen=dict(engine.chosen),
            fingerprints=dict(self.fingerprints),
            num_trainable=engine.num_trainable,
            num_steps=num_steps,
        )
        enter_cost(folder, self.meter)
        folder.update(
            lambda manifest: replace(
                manifest,
                format=data.format,
                template=data.template.name,
                data=_counted(self.prepared.report),
                sharing_ratio=sharing_ratio,
                plan=plan,
                limit=limit,
            )
        )
        return changes

    def tell(self, *lines: str) -> None:
        """Show what was chosen or has changed, and keep it in the manifest."""
        for line in lines:
            self.reporter.note(line)
        self.folder.update(lambda manifest: replace(manifest, notes=lines))

    def resume(self, trainer: Trainer) -> None:
        """Resume from the newest checkpoint of this run that verifies, if there is one.

        Raises:
            CheckpointError: There are checkpoints, and none can be used.
        """
        begun = self.folder.begun
        checkpoint, rejected = newest_checkpoint(self.folder, self.fingerprints, self.recipe)
        for bad in rejected:
            self.reporter.note(f"checkpoint {bad.path.name} is not used: {bad.reason}")
        trainer.run_mark = run_mark(begun.run_id, self.fingerprints, self.recipe.identity())
        if checkpoint is None:
            if made := last_steps(self.folder.metrics_path).get(TrainRecord.kind):
                self.reporter.note(f"no checkpoint is left of the {made} steps made before: beginning again at step 1")
            trainer.start_over()
            return
        self.reporter.note(f"resuming from step {checkpoint.step} of {trainer.num_steps}")
        if (found := checkpoint.state.get("run")) and found["id"] != begun.run_id:
            self.reporter.note("run.json was lost, and is made again from here on")
            self.folder.update(lambda manifest: replace(manifest, run_id=found["id"]))
        trainer.run_mark |= {"id": self.folder.begun.run_id}
        if lost := trainer.restore(checkpoint):
            for line in lost:
                self.reporter.note(line)
            self.folder.update(lambda manifest: replace(manifest, lost=(*manifest.lost, *lost)))

    def complete(self, trainer: Trainer, adapter: LoraAdapter, outcome: Outcome | None) -> None:
        """Put the adapter in place, and only when all of it is on the disk record that the run has finished."""
        from strop.forecast.prediction import compare

        self._write_adapter(adapter)
        written = hashes(self.folder.adapter)
        records = {path.name: mark_of(path)["sha256"] for path in (self.folder.metrics_path, self.folder.samples_path)}
        self.folder.update(
            lambda manifest: replace(
                manifest,
                adapter=written,
                adapter_step=trainer.adapter_step,
                records=records,
                progress=trainer.progress,
            )
        )
        if outcome is not None:
            compare(self.folder, outcome, self.reporter.note)
        enter_cost(self.folder, self.meter)
        keep_card(Run(self.folder.path), self.prepared.data.template, self.prepared.model, self.reporter.note)
        self.folder.set_status("finished")

    def _write_adapter(self, adapter: LoraAdapter) -> None:
        """Save the trained adapter in PEFT's format; it is read back and checked."""
        from strop.exporting.adapter import save_adapter
        from strop.exporting.prompting import write_tokenizer

        model, path, template = self.recipe.model, self.prepared.model.path, self.prepared.data.template
        base, revision = shared_name(model.model_name_or_path, model.revision)

        def carry(staging: Path) -> None:
            write_tokenizer(template, path, staging)
            if (card := self.folder.adapter / CARD_FILE).exists():  # keep it: the user may have edited it
                shutil.copyfile(card, staging / card.name)

        save_adapter(adapter, self.folder.adapter, base, revision, carry)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within its context, signals wait until checked, and run.json records how the attempt ended and its cost.

        Before that, a signal may end the process at once, because nothing would be lost.
        """
        with self.stop, telling_how_to_resume(self.folder):
            try:
                yield
            except (StropError, OSError) as error:
                with suppress(StropError):  # on a full disk this fails too; report the first failure
                    resumable = isinstance(error, Interrupted | BudgetReached | StorageError | OSError)
                    self.folder.set_status("interrupted" if resumable else "failed")
                    enter_cost(self.folder, self.meter)
                raise


def newest_checkpoint(
    folder: RunFolder, fingerprints: Mapping[str, str], recipe: Recipe
) -> tuple[Checkpoint | None, list[Rejected]]:
    """As `strop.run.checkpoint.load_newest`, of those that this run has written.

    Raises:
        CheckpointError: There are checkpoints, and none of them verifies and is of this run.
    """
    from strop.run.checkpoint import load_newest

    begun = folder.begun
    ours = run_mark(begun.run_id, fingerprints, recipe.identity())
    return load_newest(
        folder.checkpoints, lambda state: of_another_run(state.get("run"), ours, any_id=begun.attempts == 1)
    )


@contextmanager
def telling_how_to_resume(folder: RunFolder) -> Iterator[None]:
    """Add the command that resumes the run to the error that stops it."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error}. Resume with: strop train {folder.path}") from None
    except BudgetReached as error:
        raise BudgetReached(f"{error}. Resume with: strop train {folder.path} modal.max_cost=MORE") from None
    except StorageError as error:
        raise StorageError(f"{error}\n{_THEN_RESUME.format(folder.path)}") from error
    except OSError as error:
        place = Path(error.filename) if isinstance(error.filename, str) else folder.path
        raise StorageError(f"{place}: {reason(error, place)}\n{_THEN_RESUME.format(folder.path)}") from error


_THEN_RESUME = "When that is mended, resume with: strop train {}"


def _require_room(folder: RunFolder, num_trainable: int) -> None:
    """Refuse to begin where not even one checkpoint and the adapter fit: parameters, two moments, and parameters.

    Raises:
        StorageError: The disk has less room than that.
    """
    needed, free = 16 * num_trainable, shutil.disk_usage(folder.path).free
    if free < needed:
        raise StorageError(
            f"{folder.path}: a checkpoint and the adapter need {needed:,} bytes, and {free:,} are free there"
        )


def _counted(report: AuditReport) -> TrainingRows:
    """The audit's counts in the manifest's form."""
    train, held_out, overlap = report.train, report.validation, report.overlap
    counted = None
    if held_out is not None and overlap is not None:
        counted = HeldOutRows(
            rows=held_out.rows_kept,
            num_loss_tokens=held_out.num_loss_tokens,
            overlap_rows=overlap.rows,
            overlap_prompts=overlap.prompts,
        )
    return TrainingRows(
        rows=train.rows_kept,
        samples=train.samples,
        sources=_sources(train),
        found=train.found,
        unused=train.unused,
        num_tokens=train.num_tokens,
        num_loss_tokens=train.num_loss_tokens,
        skipped=train.skipped,
        truncated=train.truncated,
        tokens_cut=train.tokens_cut,
        duplicates=train.duplicates,
        lengths=Lengths(**asdict(train.lengths)),
        held_out=counted,
    )


def _sources(train: StoreReport) -> tuple[SourceRows, ...]:
    samples = sum(source.epoch_samples for source in train.sources)
    tokens = sum(source.epoch_tokens for source in train.sources)
    return tuple(
        SourceRows(
            name=source.name,
            format=source.format,
            columns=source.columns,
            samples=source.samples,
            epoch_samples=source.epoch_samples,
            epoch_share=round(source.epoch_samples / samples, 4),
            epoch_token_share=round(source.epoch_tokens / tokens, 4),
        )
        for source in train.sources
    )
