"""The training of a recipe: one attempt in its run folder, from the newest checkpoint on."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from strop.api.billing import enter_cost, meter_of
from strop.api.loading import load_model
from strop.api.planning import compare, prediction
from strop.api.preparing import Prepared, check
from strop.api.run import Run
from strop.errors import BudgetReached, Interrupted, StropError
from strop.recipe import Recipe, differences, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from strop.forecast.outcome import Outcome
    from strop.model.lora import LoraAdapter
    from strop.run.console import Reporter
    from strop.run.cost import Meter
    from strop.run.folder import RunFolder
    from strop.train.loop import Trainer
    from strop.train.stop import StopSignals


def train(recipe: Recipe, reporter: Reporter | None = None) -> Run:
    """Train a recipe's adapter, from the newest checkpoint of its run folder if there is one.

    Args:
        recipe: From `load_recipe`.
        reporter: Told of everything that happens; silent by default.

    Returns:
        The run, with its adapter in `Run.adapter_path`. A finished run is returned as it is.

    Raises:
        StropError: See `strop.errors`; whatever was trained until then is in a checkpoint.
    """
    from strop.run.console import Reporter
    from strop.run.folder import RunFolder
    from strop.train.stop import StopSignals

    reporter = reporter or Reporter()
    folder = RunFolder(recipe.output_dir)
    with folder.claim():
        prepared = check(recipe, reporter.note)
        fingerprints = _fingerprints(prepared)
        if folder.manifest:
            _refuse_another_run(folder, recipe, fingerprints)
        if folder.status == "finished":
            reporter.note(f"{folder.path} is finished already; its adapter is {folder.adapter}")
            return Run(folder.path)
        with _told_how_to_go_on(folder):
            meter = meter_of(recipe, folder, reporter.note)
            if meter is not None:
                meter.check()  # before the model is loaded at the user's expense
        adapter = load_model(recipe, prepared.model_folder, reporter)
        stop = StopSignals()
        trainer = _trainer(recipe, prepared, adapter, folder, reporter, stop, meter)
        _begin(folder, recipe, fingerprints, prepared, trainer)
        with (
            _told_how_to_go_on(folder),
            stop,
            _status_kept(folder, meter),
        ):  # until here a signal may end the process at once: nothing is lost
            _resume(trainer, folder, reporter)
            trainer.run()
            _write_adapter(recipe, prepared.model_folder, adapter, folder)
        folder.update_manifest(status="finished", progress=asdict(trainer.progress))
        enter_cost(folder, meter)
        compare(folder, _outcome(trainer), reporter.note)
    return Run(folder.path)


def _fingerprints(prepared: Prepared) -> dict[str, str]:
    from strop.model.fingerprint import fingerprint_folder

    return {
        "base model": fingerprint_folder(prepared.model_folder),
        "training data": prepared.data.train.fingerprint,
        "held-out data": prepared.data.validation.fingerprint if prepared.data.validation else "none",
    }


def _refuse_another_run(folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str]) -> None:
    from strop.run.folder import refuse_changes

    stored = load_recipe(str(folder.path / "recipe.yaml"))
    refuse_changes(folder.manifest.get("fingerprints", {}), fingerprints, differences(stored, recipe))


def _begin(
    folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str], prepared: Prepared, trainer: Trainer
) -> None:
    """Enter in the run folder what this attempt starts from."""
    decoder = trainer.decoder
    if not folder.manifest:
        folder.write_recipe(recipe.to_yaml())
    changes = folder.begin_attempt(
        device=_device_name(decoder.device),
        chosen={"precision": decoder.precision, "max_tokens_per_microbatch": trainer.max_tokens},
        fingerprints=fingerprints,
        num_trainable=trainer.adapter.num_parameters,
        num_steps=trainer.num_steps,
    )
    enter_cost(folder, trainer.meter)
    sharing = trainer.microbatches.sharing()
    for line in (*changes, *trainer.explain(), trainer.microbatches.explain(sharing)):
        trainer.reporter.note(line)
    expected = prediction(recipe, prepared, folder, _device_name(decoder.device), trainer.meter)
    folder.update_manifest(
        plan=expected.to_json() if expected else None,
        format=prepared.data.format,
        template=prepared.data.template.name,
        sharing_ratio=round(sharing, 3),
        data={
            "rows": len(prepared.data.train),
            "num_tokens": prepared.data.train.num_tokens,
            "num_loss_tokens": prepared.data.train.num_loss_tokens,
            "skipped": prepared.data.train.skipped,
        },
    )


def _trainer(
    recipe: Recipe,
    prepared: Prepared,
    adapter: LoraAdapter,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignals,
    meter: Meter | None,
) -> Trainer:
    from strop.evaluate.loss import held_out_loss
    from strop.train.loop import Trainer

    def evaluate() -> float:
        assert prepared.data.validation is not None
        store, nll_of = prepared.data.validation, trainer.gradients.nll_of
        return held_out_loss(adapter.decoder, store, trainer.max_tokens, trainer.check, nll_of).nll

    held_out = evaluate if prepared.data.validation else None
    trainer = Trainer(
        adapter,
        prepared.data.train,
        recipe.train,
        folder,
        reporter,
        held_out,
        stop.check,
        meter=meter,
        most_tokens=_most_tokens(folder, recipe, adapter.decoder.device),
    )
    return trainer


def _most_tokens(folder: RunFolder, recipe: Recipe, device: torch.device) -> int | None:
    """The microbatch that this run was left with on a GPU like this one, unless the recipe's was changed since."""
    manifest = folder.manifest
    if manifest.get("device") != _device_name(device):
        return None
    began_with = load_recipe(str(folder.path / "recipe.yaml")).train.max_tokens_per_microbatch
    left_with: int | None = manifest.get("max_tokens_per_microbatch")
    return left_with if began_with == recipe.train.max_tokens_per_microbatch else None


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _outcome(trainer: Trainer) -> Outcome:
    import torch

    from strop.forecast.outcome import Outcome

    progress, device, meter = trainer.progress, trainer.decoder.device, trainer.meter
    return Outcome(
        training_seconds=progress.seconds,
        tokens_per_second=progress.num_tokens / progress.seconds,
        peak_gib=torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None,
        dollars=None if meter is None else meter.dollars,
        steps=(progress.step, trainer.num_steps),
        attempts=trainer.folder.manifest["attempts"],
    )


def _resume(trainer: Trainer, folder: RunFolder, reporter: Reporter) -> None:
    from strop.run.checkpoint import load_newest

    checkpoint, rejected = load_newest(folder.checkpoints)
    for bad in rejected:
        reporter.note(f"checkpoint {bad.path.name} is not used: {bad.reason}")
    if checkpoint is not None:
        trainer.restore(checkpoint)
        reporter.note(f"going on from step {checkpoint.step} of {trainer.num_steps}")
    else:
        trainer.metrics.truncate_after(0)


def _write_adapter(recipe: Recipe, model_folder: Path, adapter: LoraAdapter, folder: RunFolder) -> None:
    from strop.export.adapter import save_adapter

    base = recipe.model.model_name_or_path
    if base.startswith("package:") or base.endswith(".gguf"):
        base = str(model_folder)  # PEFT can load the converted folder, not the package or the GGUF file
    save_adapter(adapter, folder.adapter, base, recipe.model.revision, model_folder)


@contextmanager
def _status_kept(folder: RunFolder, meter: Meter | None) -> Iterator[None]:
    """Enter in run.json how an attempt ended and what it cost, without hiding why."""
    try:
        yield
    except StropError as error:
        with suppress(StropError):  # on a full disk this would fail too, and the first failure is the one to tell
            folder.set_status("interrupted" if isinstance(error, Interrupted | BudgetReached) else "failed")
            enter_cost(folder, meter)
        raise


@contextmanager
def _told_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error}. Go on with: strop train {folder.path}") from None
    except BudgetReached as error:
        raise BudgetReached(f"{error}. Go on with: strop train {folder.path} modal.max_cost=MORE") from None
