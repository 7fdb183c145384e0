"""`strop train`: a recipe's adapter, trained on strop's engine or on Unsloth, here or on Modal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from strop.commands import console
from strop.commands.arguments import Overrides, Place, RecipeArgument
from strop.commands.attempt import Attempt, telling_how_to_resume
from strop.commands.card import keep_card
from strop.commands.console import out
from strop.commands.load import load_model
from strop.commands.prepare import Prepared, prepare
from strop.commands.report import keep_report
from strop.commands.run import Run
from strop.data.questions import questions_at
from strop.errors import RecipeError
from strop.modal_runs import require_modal
from strop.modal_runs.launch import launch
from strop.modal_runs.meter import meter_of
from strop.model.checkpoint.fingerprint import fingerprint_folder
from strop.recipe import Recipe, differences, load_recipe
from strop.run.folder import RunFolder, refuse_changes
from strop.run.live import console_reporter
from strop.run.metrics import last_steps
from strop.run.reporter import Reporter, clock
from strop.run.trackers.feed import TrackingReporter
from strop.run.trackers.tracker import TrackedRun, require
from strop.training.stop import StopSignals

if TYPE_CHECKING:
    import torch

    from strop.evaluation.samples import Asked
    from strop.forecast.outcome import Outcome
    from strop.model.lora import LoraAdapter
    from strop.training.loop import Trainer


def train(recipe: Recipe, *, reporter: Reporter | None = None) -> Run:
    """Train a recipe's adapter, from the newest checkpoint of its run folder if there is one.

    Args:
        recipe: From `load_recipe`.
        reporter: Told of everything that happens; silent by default.

    Returns:
        The run, with its adapter in `Run.adapter_path`. A finished run is returned as it is.

    Raises:
        StropError: See `strop.errors`; what was trained until then is in a checkpoint.
    """
    reporter = reporter or Reporter()
    require(recipe.train.report_to)
    folder = RunFolder(recipe.output_dir)
    with folder.claim():
        prepared = prepare(recipe, reporter.note)
        prepared.report.refuse()
        fingerprints = _fingerprints(prepared)
        if folder.manifest:
            _refuse_another_run(folder, recipe, fingerprints)
        if folder.status == "finished":
            reporter.note(f"{folder.path} is finished already; its adapter is {folder.adapter}")
            return Run(folder.path)
        with telling_how_to_resume(folder):
            meter = meter_of(recipe, folder, reporter.note)
            if meter is not None:
                meter.check()  # before the model is loaded at the user's expense
        reporter = _tracked(recipe, folder, reporter)
        attempt = Attempt(recipe, prepared, fingerprints, folder, reporter, meter, StopSignals())
        try:
            (_on_unsloth if recipe.train.engine == "unsloth" else _on_strop)(attempt)
        finally:
            if folder.manifest.get("status") == "finished":
                keep_card(Run(folder.path), prepared.data.template, prepared.model, reporter.note)
            if folder.manifest.get("status") in ("finished", "failed"):
                keep_report(Run(folder.path), reporter.note)
    return Run(folder.path)


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[Place, typer.Option(help="Train here, or on a GPU of Modal's (docs/modal.md).")] = Place.here,
    detach: Annotated[bool, typer.Option("--detach", help="With --on modal: start the run and leave it.")] = False,
    engine: Annotated[
        Literal["strop", "unsloth"] | None,
        typer.Option(help="Compute the steps with strop, or with Unsloth and TRL's trainer."),
    ] = None,
) -> None:
    """Train a recipe, or resume an unfinished run: give a recipe or a run folder.

    Ctrl-C saves a checkpoint and stops; the same command resumes from it.
    """
    settings = list(overrides or ())
    if Path(recipe, "recipe.yaml").exists():  # a run folder, wherever it has been moved to
        recipe, settings = f"{recipe}/recipe.yaml", [*settings, f"train.output_dir={recipe}"]
    loaded = load_recipe(recipe, [*settings, *([f"train.engine={engine}"] if engine else [])])
    console.notes(loaded)
    if on is Place.modal:
        return _on_modal(loaded, detach)
    if detach:
        raise RecipeError("--detach goes with --on modal")
    _print_finished(train(loaded, reporter=console_reporter(loaded.train.logging_steps, loaded.modal.max_cost)))


def _on_modal(recipe: Recipe, detach: bool) -> None:
    require_modal()
    outcome = launch(recipe, console.note, detach=detach)
    if outcome is not None and outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    if outcome is not None:
        _print_finished(Run(recipe.output_dir))


def _print_finished(run: Run) -> None:
    progress, dollars = run.manifest["progress"], run.manifest.get("dollars")
    cost = "" if dollars is None else f", ${dollars:.2f}"
    last = [record for record in run.metrics() if record["kind"] == "eval"]
    losses = f", held-out loss {last[0]['eval_loss']:.4f} -> {last[-1]['eval_loss']:.4f}" if len(last) > 1 else ""
    if len(last) == 1:
        losses = f", held-out loss {last[0]['eval_loss']:.4f}"
    out.print(
        f"[green]done[/green]: {progress['step']} steps in {clock(progress['seconds'])}{losses}{cost}\n"
        f"adapter: {escape(str(run.adapter_path))} (saved, read back and checked)\n"
        f"Next: strop evaluate {escape(str(run.path))}"
    )


def _tracked(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> Reporter:
    """The reporter, with the recipe's trackers beside it."""
    if not recipe.train.report_to:
        return reporter
    settings = recipe.model_dump(mode="json", exclude={"modal": {"secrets"}})

    def run(step: int) -> TrackedRun:
        return TrackedRun(folder.manifest["run_id"], recipe.name, folder.path, step, settings)

    names = list(dict.fromkeys(recipe.train.report_to))
    return TrackingReporter(reporter, names, run, last_steps(folder.metrics_path))


def _on_strop(attempt: Attempt) -> None:
    from strop.forecast.estimate import Job
    from strop.forecast.limit import limit_of
    from strop.forecast.outcome import compare
    from strop.forecast.prediction import prediction

    recipe, prepared, folder, reporter = attempt.recipe, attempt.prepared, attempt.folder, attempt.reporter
    job = Job(recipe, prepared.model.config, prepared.data.train, prepared.data.validation)
    adapter = load_model(recipe, prepared.model, reporter.note)
    trainer = _trainer(attempt, adapter)
    decoder, device = trainer.decoder, _device_name(trainer.decoder.device)
    sharing = trainer.microbatches.sharing()
    expected = prediction(job, folder, device, attempt.meter)
    changes = attempt.begin(
        device,
        {"precision": decoder.precision, "max_tokens_per_microbatch": trainer.max_tokens},
        adapter.num_parameters,
        trainer.num_steps,
        sharing_ratio=round(sharing, 3),
        plan=expected.to_json() if expected else None,
        limit=limit_of(job.shape, device, decoder.precision),
    )
    attempt.tell(*changes, *trainer.explain(), trainer.microbatches.explain(sharing))
    with attempt.watched():
        attempt.resume(trainer)
        trainer.run()
        attempt.write_adapter(adapter)
    attempt.finish(trainer)
    compare(folder, _outcome(trainer), reporter.note)


def _on_unsloth(attempt: Attempt) -> None:
    """In a worker; its adapter is read back and checked on strop's own decoder once the GPU is free."""
    from strop.exporting.adapter import fill_adapter
    from strop.unsloth.trainer import UnslothTrainer, start_worker

    recipe, prepared, folder, reporter = attempt.recipe, attempt.prepared, attempt.folder, attempt.reporter
    data = prepared.data
    with start_worker(recipe, prepared.model, data.train, data.validation, folder) as worker:
        reporter.note(f"Unsloth is starting in its own process; its output is in {worker.log}")
        trainer = UnslothTrainer(
            worker,
            data.train,
            data.validation is not None,
            recipe.train,
            folder,
            reporter,
            attempt.stop.check,
            meter=attempt.meter,
        )
        changes = attempt.begin(trainer.device, trainer.chosen, trainer.num_trainable, trainer.num_steps)
        attempt.tell(*changes, *trainer.explain())
        with attempt.watched():
            attempt.resume(trainer)
            tensors = trainer.run()
            worker.close()
            adapter = load_model(recipe, prepared.model, serving=True)
            fill_adapter(adapter, tensors, "what Unsloth trained")
            attempt.write_adapter(adapter)
    attempt.finish(trainer)


def _fingerprints(prepared: Prepared) -> dict[str, str]:
    return {
        "base model": fingerprint_folder(prepared.model.path),
        "training data": prepared.data.train.fingerprint,
        "held-out data": prepared.data.validation.fingerprint if prepared.data.validation else "none",
    }


def _refuse_another_run(folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str]) -> None:
    stored = load_recipe(str(folder.path / "recipe.yaml"))
    refuse_changes(folder.manifest.get("fingerprints", {}), fingerprints, differences(stored, recipe))


def _trainer(attempt: Attempt, adapter: LoraAdapter) -> Trainer:
    from strop.evaluation.loss import held_out_loss
    from strop.training.loop import Trainer

    data, recipe = attempt.prepared.data, attempt.recipe

    def evaluate() -> float:
        assert data.validation is not None
        nll_of = trainer.gradients.nll_of
        return held_out_loss(adapter.decoder, data.validation, trainer.max_tokens, trainer.check, nll_of).nll

    asked = _asked(attempt)
    trainer = Trainer(
        adapter,
        data.train,
        recipe.train,
        attempt.folder,
        attempt.reporter,
        evaluate if data.validation else None,
        attempt.stop.check,
        meter=attempt.meter,
        most_tokens=_most_tokens(attempt.folder, recipe, adapter.decoder.device),
        sample=(lambda step: asked.answers(adapter.decoder, step, trainer.check)) if asked else None,
    )
    return trainer


def _asked(attempt: Attempt) -> Asked | None:
    """The held-out rows that are answered during training; None if there are none or they ask nothing."""
    from strop.evaluation.samples import Asked

    data, recipe = attempt.prepared.data, attempt.recipe
    wanted = 2 if recipe.train.sample_rows is None else recipe.train.sample_rows
    if data.validation is None or not wanted:
        return None
    if data.format == "text" or recipe.data.train_on == "all":
        attempt.reporter.note("no samples during training: these rows have no answer separate from the question")
        return None
    store = data.validation
    origins = [store.origin(i) for i in range(min(wanted, len(store)))]
    found = questions_at(recipe.data, data.format, origins)
    return Asked(store, data.template, [found[origin] for origin in origins])


def _most_tokens(folder: RunFolder, recipe: Recipe, device: torch.device) -> int | None:
    """The microbatch that an earlier attempt ended with on such a GPU, unless the recipe sets another one since."""
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
