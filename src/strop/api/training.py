"""The training of a recipe: one attempt in its run folder, from the newest checkpoint on."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from strop.api.loading import load_model
from strop.api.preparing import Prepared, check
from strop.api.run import Run
from strop.errors import Interrupted, StropError
from strop.recipe import Recipe, differences, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from strop.engines.unsloth import UnslothTrainer
    from strop.model.lora import LoraAdapter
    from strop.run.console import Reporter
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
        attempt = _on_unsloth if recipe.train.engine == "unsloth" else _on_strop
        attempt(recipe, prepared, fingerprints, folder, reporter)
    return Run(folder.path)


def _on_strop(
    recipe: Recipe, prepared: Prepared, fingerprints: dict[str, str], folder: RunFolder, reporter: Reporter
) -> None:
    from strop.train.stop import StopSignals

    adapter = load_model(recipe, prepared.model_folder, reporter)
    stop = StopSignals()
    trainer = _trainer(recipe, prepared, adapter, folder, reporter, stop)
    _begin(folder, recipe, fingerprints, prepared, trainer)
    with stop, _status_kept(folder):  # until here a signal may end the process at once: nothing is lost
        _resume(trainer, folder, reporter)
        trainer.run()
        _write_adapter(recipe, prepared.model_folder, adapter, folder)
    folder.update_manifest(status="finished", progress=asdict(trainer.progress))


def _on_unsloth(
    recipe: Recipe, prepared: Prepared, fingerprints: dict[str, str], folder: RunFolder, reporter: Reporter
) -> None:
    """The same in a worker; its adapter is read back and checked on strop's own decoder once the GPU is free."""
    from strop.engines.unsloth import UnslothTrainer, start_worker
    from strop.export.adapter import fill_adapter
    from strop.run.console import Reporter
    from strop.train.stop import StopSignals

    with start_worker(recipe, prepared.model_folder, prepared.data.train, prepared.data.validation, folder) as worker:
        reporter.note(f"Unsloth is starting in a process of its own; its output is in {worker.log}")
        stop, held_out = StopSignals(), prepared.data.validation is not None
        trainer = UnslothTrainer(worker, prepared.data.train, held_out, recipe.train, folder, reporter, stop.check)
        changes = _enter(
            folder,
            recipe,
            prepared,
            device=trainer.device,
            chosen=trainer.chosen,
            fingerprints=fingerprints,
            num_trainable=trainer.num_trainable,
            num_steps=trainer.num_steps,
        )
        for line in (*changes, *trainer.explain()):
            reporter.note(line)
        with stop, _status_kept(folder):
            _resume(trainer, folder, reporter)
            tensors = trainer.run()
            worker.close()
            adapter = load_model(recipe, prepared.model_folder, Reporter(), serving=True)
            fill_adapter(adapter, tensors, "what Unsloth trained")
            _write_adapter(recipe, prepared.model_folder, adapter, folder)
    folder.update_manifest(status="finished", progress=asdict(trainer.progress))


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
    import torch

    decoder = trainer.decoder
    changes = _enter(
        folder,
        recipe,
        prepared,
        device=torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else "cpu",
        chosen={"precision": decoder.precision, "max_tokens_per_microbatch": trainer.max_tokens},
        fingerprints=fingerprints,
        num_trainable=trainer.adapter.num_parameters,
        num_steps=trainer.num_steps,
    )
    sharing = trainer.microbatches.sharing()
    for line in (*changes, *trainer.explain(), trainer.microbatches.explain(sharing)):
        trainer.reporter.note(line)
    folder.update_manifest(sharing_ratio=round(sharing, 3))


def _enter(folder: RunFolder, recipe: Recipe, prepared: Prepared, **attempt: Any) -> list[str]:
    """Enter the recipe, the data and an attempt at them; returns what `RunFolder.begin_attempt` does."""
    if not folder.manifest:
        folder.write_recipe(recipe.to_yaml())
    changes = folder.begin_attempt(**attempt)
    folder.update_manifest(
        format=prepared.data.format,
        template=prepared.data.template.name,
        data={
            "rows": len(prepared.data.train),
            "num_tokens": prepared.data.train.num_tokens,
            "num_loss_tokens": prepared.data.train.num_loss_tokens,
            "skipped": prepared.data.train.skipped,
        },
    )
    return changes


def _trainer(
    recipe: Recipe,
    prepared: Prepared,
    adapter: LoraAdapter,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignals,
) -> Trainer:
    from strop.evaluate.loss import held_out_loss
    from strop.train.loop import Trainer

    def evaluate() -> float:
        assert prepared.data.validation is not None
        store, nll_of = prepared.data.validation, trainer.gradients.nll_of
        return held_out_loss(adapter.decoder, store, trainer.max_tokens, stop.check, nll_of).nll

    held_out = evaluate if prepared.data.validation else None
    trainer = Trainer(adapter, prepared.data.train, recipe.train, folder, reporter, held_out, stop.check)
    return trainer


def _resume(trainer: Trainer | UnslothTrainer, folder: RunFolder, reporter: Reporter) -> None:
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
def _status_kept(folder: RunFolder) -> Iterator[None]:
    """Enter in run.json how an attempt ended, without hiding why; an interruption says how to go on."""
    try:
        yield
    except StropError as error:
        interrupted = isinstance(error, Interrupted)
        with suppress(StropError):  # on a full disk this would fail too, and the first failure is the one to tell
            folder.set_status("interrupted" if interrupted else "failed")
        if interrupted:
            raise Interrupted(f"{error}. Go on with: strop train {folder.path}") from None
        raise
