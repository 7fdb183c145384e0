"""One attempt at a run, whichever engine computes its steps: what it starts from, how it ends, and what it cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from strop.errors import BudgetReached, Interrupted, StropError
from strop.recipe import Recipe
from strop.run.cost import enter_cost

if TYPE_CHECKING:
    from pathlib import Path

    from strop.commands.prepare import Prepared
    from strop.data.audit import AuditReport
    from strop.model.lora import LoraAdapter
    from strop.run.cost import Meter
    from strop.run.folder import RunFolder
    from strop.run.reporter import Reporter
    from strop.training.engine import Engine
    from strop.training.loop import Trainer
    from strop.training.stop import StopSignals


@dataclass(frozen=True)
class Attempt:
    """A recipe about to be trained in its run folder.

    Attributes:
        prepared: Its model folder and data.
        fingerprints: What a later attempt must find unchanged.
        meter: Counts dollars; None where nothing is billed.
        stop: SIGINT and SIGTERM.
    """

    recipe: Recipe
    prepared: Prepared
    fingerprints: Mapping[str, str]
    folder: RunFolder
    reporter: Reporter
    meter: Meter | None
    stop: StopSignals

    def begin(self, engine: Engine, num_steps: int, **entries: Any) -> list[str]:
        """Enter recipe, data and this attempt in the run folder.

        Args:
            engine: What computes the steps, and on which device.
            num_steps: Updates from beginning to end.
            entries: More for the manifest.

        Returns:
            What differs from the attempt before, one a line.
        """
        folder, data = self.folder, self.prepared.data
        if not folder.manifest:
            folder.write_recipe(self.recipe.to_yaml())
        changes = folder.begin_attempt(
            device=engine.device,
            chosen=dict(engine.chosen),
            fingerprints=dict(self.fingerprints),
            num_trainable=engine.num_trainable,
            num_steps=num_steps,
        )
        enter_cost(folder, self.meter)
        folder.update_manifest(
            format=data.format,
            template=data.template.name,
            data=_data_entry(self.prepared.report),
            **entries,
        )
        return changes

    def tell(self, *lines: str) -> None:
        """Say what was chosen or has changed, and keep it in the manifest."""
        for line in lines:
            self.reporter.note(line)
        self.folder.update_manifest(notes=list(lines))

    def resume(self, trainer: Trainer) -> None:
        """Continue from the newest checkpoint that verifies, if there is one."""
        from strop.run.checkpoint import load_newest

        checkpoint, rejected = load_newest(self.folder.checkpoints)
        for bad in rejected:
            self.reporter.note(f"checkpoint {bad.path.name} is not used: {bad.reason}")
        if checkpoint is not None:
            trainer.restore(checkpoint)
            self.reporter.note(f"resuming from step {checkpoint.step} of {trainer.num_steps}")
        else:
            trainer.metrics.truncate_after(0)

    def write_adapter(self, adapter: LoraAdapter) -> None:
        """Save the trained adapter in PEFT's format, read back and checked."""
        from strop.exporting.adapter import save_adapter
        from strop.exporting.prompting import write_tokenizer
        from strop.reporting.card import CARD_FILE

        model, path, template = self.recipe.model, self.prepared.model.path, self.prepared.data.template
        base = model.model_name_or_path
        if base.startswith("package:") or base.endswith(".gguf"):
            base = str(path)  # PEFT can load the converted folder, not the package or the GGUF file

        def carry(staging: Path) -> None:
            write_tokenizer(template, path, staging)
            if (card := self.folder.adapter / CARD_FILE).exists():  # it may have been changed by hand
                shutil.copyfile(card, staging / card.name)

        save_adapter(adapter, self.folder.adapter, base, model.revision, carry)

    def finish(self, trainer: Trainer) -> None:
        """Enter that the run is finished, and what it cost."""
        self.folder.update_manifest(status="finished", progress=asdict(trainer.progress))
        enter_cost(self.folder, self.meter)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While entered, signals wait until they are checked; run.json records how the attempt ended and what it cost.

        Before that a signal may end the process at once: nothing is lost.
        """
        with self.stop, telling_how_to_resume(self.folder):
            try:
                yield
            except StropError as error:
                with suppress(StropError):  # on a full disk this fails too, and the first failure is the one to tell
                    resumable = isinstance(error, Interrupted | BudgetReached)
                    self.folder.set_status("interrupted" if resumable else "failed")
                    enter_cost(self.folder, self.meter)
                raise


@contextmanager
def telling_how_to_resume(folder: RunFolder) -> Iterator[None]:
    """Add the command that resumes the run to the error that stopped it."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error}. Resume with: strop train {folder.path}") from None
    except BudgetReached as error:
        raise BudgetReached(f"{error}. Resume with: strop train {folder.path} modal.max_cost=MORE") from None


def _data_entry(report: AuditReport) -> dict[str, Any]:
    """What the audit counted, as the manifest has it."""
    train, held_out, overlap = report.train, report.validation, report.overlap
    entry: dict[str, Any] = {
        "rows": train.rows_kept,
        "num_tokens": train.num_tokens,
        "num_loss_tokens": train.num_loss_tokens,
        "skipped": train.skipped,
        "truncated": train.truncated,
        "duplicates": train.duplicates,
        "lengths": asdict(train.lengths),
    }
    if held_out is not None and overlap is not None:
        entry["held_out"] = {
            "rows": held_out.rows_kept,
            "num_loss_tokens": held_out.num_loss_tokens,
            "overlap_rows": overlap.rows,
            "overlap_prompts": overlap.prompts,
        }
    return entry
