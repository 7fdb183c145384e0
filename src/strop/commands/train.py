"""`strop train`: train a recipe's adapter with strop's engine or Unsloth, here or on Modal."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from strop.commands import console
from strop.commands.arguments import as_recipe
from strop.commands.attempt import Attempt, StopSignals, newest_checkpoint, telling_how_to_resume
from strop.commands.card import keep_card
from strop.commands.console import Overrides, Place, RecipeArgument, out
from strop.commands.findings import tell_findings
from strop.commands.follow import follow
from strop.commands.prepare import Prepared, prepare
from strop.commands.report import REPORT_FILE, keep_report
from strop.commands.run import Run
from strop.commands.setup import strop_setup, unsloth_setup
from strop.data.sources import questions_at
from strop.errors import CheckpointError, RecipeError, StorageError
from strop.modal_runs import require_modal
from strop.modal_runs.prices import meter_of
from strop.parallel.join import meet
from strop.parallel.launch import launch, ranks_to_start
from strop.parallel.meeting import Meeting, Stopped
from strop.parallel.place import here
from strop.readable import clock, counted
from strop.recipe import Recipe, differences, load_recipe
from strop.run.adapter import CARD_FILE, fault, set_aside
from strop.run.folder import RunFolder
from strop.run.identity import refuse_changes
from strop.run.live import console_reporter
from strop.run.progress import Progress, coverage
from strop.run.records import EvalRecord, base_and_adapter, changed_records, last_steps
from strop.run.reporter import Reporter, reporter_for
from strop.run.trackers.feed import TrackingReporter
from strop.run.trackers.tracker import TrackedRun, require

if TYPE_CHECKING:
    from strop.evaluation.samples import SampledRows
    from strop.forecast.prediction import Outcome
    from strop.run.manifest import Manifest
    from strop.training.loop import Trainer


def train(recipe: Recipe | str | Path, *, reporter: Reporter | None = None, quiet: bool = False) -> Run:
    """Train a recipe's adapter, resuming from the newest checkpoint in its run folder if there is one.

    Args:
        recipe: From `load_recipe`, or what that takes; a run folder resumes that run.
        reporter: Told about everything that happens; by default lines are printed, every `train.logging_steps` steps.
        quiet: Print nothing.

    Returns:
        The run, with its adapter in `Run.adapter_path`. A finished run is returned unchanged.

    Raises:
        StropError: See `strop.errors`. What was trained so far is in a checkpoint.
    """
    place = here()
    recipe = as_recipe(recipe).on_gpus(place.ranks)
    meeting = meet(place, f"Resume with: strop train {recipe.output_dir}")
    if not place.leads:
        return follow(recipe, meeting)
    with meeting.led():
        return _lead(recipe, meeting, reporter_for(reporter, quiet, recipe.train.logging_steps))


def _lead(recipe: Recipe, meeting: Meeting, reporter: Reporter) -> Run:
    """Train, as the only rank or as rank 0."""
    require(recipe.train.report_to)
    folder = RunFolder(recipe.output_dir)
    with folder.claim():
        prepared = meeting.once_per_machine(lambda: prepare(recipe, reporter))
        prepared.report.refuse()
        fingerprints = prepared.fingerprints
        if folder.manifest is None:
            tell_findings(prepared, reporter.note)
        else:
            _refuse_another_run(folder, recipe, fingerprints)
            if changed := folder.recipe_changed:
                reporter.note(changed)
        if folder.status == "finished" and _is_sound(folder, recipe, fingerprints, reporter):
            _keep_missing(folder, prepared, reporter)
            return Run(folder.path)
        with telling_how_to_resume(folder):
            meter = meter_of(recipe, folder, reporter.note)
            if meter is not None:
                meter.check()  # before loading the model, which costs the user money
        meeting.form(prepared.facts)
        reporter = _tracked(recipe, folder, reporter)
        attempt = Attempt(recipe, prepared, fingerprints, folder, reporter, meter, StopSignals(), meeting)
        try:
            _run(attempt)
        finally:
            if folder.manifest and folder.begun.status in ("finished", "failed"):
                keep_report(Run(folder.path), reporter.note)
    return Run(folder.path)


def _is_sound(folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str], reporter: Reporter) -> bool:
    """Whether the adapter of a finished run is what the run wrote. If not, its last steps are to be made again.

    Raises:
        CheckpointError: There is nothing to make it from; it is left where it is.
        StorageError: It cannot be read.
    """
    found = fault(folder)
    if found is None:
        reporter.note(f"{folder.path} has already finished; its adapter is in {folder.adapter}")
        return True
    try:
        checkpoint, _ = newest_checkpoint(folder, fingerprints, recipe)
    except CheckpointError as error:
        raise CheckpointError(f"{found}, and {error}") from error
    if checkpoint is None:
        raise CheckpointError(
            f"{found}, and no checkpoint is left to make it from. Put it back from a copy, or train again with another "
            "train.output_dir"
        )
    aside = set_aside(folder)
    kept = f"; what was there is now in {aside}" if aside else ""
    reporter.note(f"{found}: the adapter is made again from the newest checkpoint{kept}")
    return False


def _keep_missing(folder: RunFolder, prepared: Prepared, reporter: Reporter) -> None:
    """Make what a kill or a full disk left out after the adapter was in place."""
    run = Run(folder.path)
    for name in changed_records(folder.path, folder.begun.records):
        reporter.note(f"{folder.path / name} is not what the run wrote: lines were lost or changed")
    if not _has_text(run.adapter_path / CARD_FILE):
        keep_card(run, prepared.data.template, prepared.model, reporter.note)
    if not _has_text(run.path / REPORT_FILE):
        keep_report(run, reporter.note)


def _has_text(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[Place, typer.Option(help="Train here, or on a Modal GPU (docs/modal.md).")] = Place.here,
    detach: Annotated[bool, typer.Option("--detach", help="With --on modal: start the run and exit.")] = False,
    gpus: Annotated[
        str | None, typer.Option(help="How many GPUs of this machine share each step: a number, or all (the default).")
    ] = None,
    engine: Annotated[
        Literal["strop", "unsloth"] | None,
        typer.Option(help="Compute the steps with strop, or with Unsloth and TRL's trainer."),
    ] = None,
) -> None:
    """Train a recipe, or resume an unfinished run: give a recipe or a run folder.

    Ctrl-C saves a checkpoint and stops; the same command resumes from it.
    """
    if here().local_rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ended with the others, it has nothing to say
    try:
        loaded = load_recipe(recipe, [*(overrides or ()), *([f"train.engine={engine}"] if engine else [])])
    except RecipeError as error:
        if here().local_rank != 0:  # the first rank of this machine says it
            raise typer.Exit(error.exit_code) from None
        raise
    if on is Place.modal:
        if gpus is not None:
            raise RecipeError(
                "--gpus is for this machine; on Modal, modal.gpu has the number, such as modal.gpu=H100:4"
            )
        console.notes(loaded)
        return _on_modal(loaded, detach)
    if detach:
        raise RecipeError("--detach needs --on modal")
    ranks = ranks_to_start(gpus, here(), loaded.train.engine)
    if ranks > 1:
        given = [recipe, *(overrides or ()), *([f"--engine={engine}"] if engine else [])]
        raise typer.Exit(launch(["train", *given], ranks, RunFolder(loaded.output_dir)))
    if not here().leads:
        return _as_follower(loaded)
    console.notes(loaded)
    _print_finished(train(loaded, reporter=console_reporter(loaded.train.logging_steps, loaded.modal.max_cost)))


def _as_follower(recipe: Recipe) -> None:
    """What stopped the run is said by rank 0, once."""
    try:
        train(recipe)
    except Stopped as error:
        raise typer.Exit(error.exit_code) from None


def _on_modal(recipe: Recipe, detach: bool) -> None:
    require_modal()
    from strop.modal_runs.launch import launch

    outcome = launch(recipe, console.note, detach=detach)
    if outcome is not None and outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    if outcome is not None:
        _print_finished(Run(recipe.output_dir))


def _print_finished(run: Run) -> None:
    manifest, recipe = run.manifest, run.recipe
    progress = manifest.progress or Progress()
    step = progress.step if manifest.adapter_step is None else manifest.adapter_step
    best = "" if step == progress.step else f", the adapter is that of step {step}"
    cost = "" if manifest.dollars is None else f", ${manifest.dollars:.2f}"
    out.print(
        f"[green]done[/green]: {counted(progress.step, 'step')}{_seen(manifest, recipe)}{best}, "
        f"training time {clock(progress.seconds)}{_held_out_losses(run)}{cost}\n"
        f"adapter: {escape(str(run.adapter_path))} (saved, read back and checked)\n"
        f"Next: strop evaluate {escape(str(run.path))}",
        soft_wrap=True,
    )


def _seen(manifest: Manifest, recipe: Recipe) -> str:
    """What part of the samples the run has seen."""
    data, steps = manifest.data, (manifest.progress or Progress()).step
    samples = (data and (sum(each.epoch_samples or 0 for each in data.sources) or data.samples)) or 0
    return f" on {coverage(steps, recipe.train.samples_per_step, samples)}" if samples else ""


def _held_out_losses(run: Run) -> str:
    pairs: list[tuple[int, float]] = []
    with suppress(StorageError):  # a damaged line of the metrics; the report says so
        pairs = [(record.step, record.eval_loss) for record in run.metrics() if isinstance(record, EvalRecord)]
    base, adapter = base_and_adapter(pairs, run.manifest.adapter_step)
    if adapter is None:
        return ""
    before = "" if base is None else f"{base:.4f} (base) -> "
    worse = ", worse than the base" if base is not None and adapter > base else ""
    return f", held-out loss {before}{adapter:.4f}{worse}"


def _tracked(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> Reporter:
    """The reporter, which also feeds the recipe's trackers if there are any."""
    if not recipe.train.report_to:
        return reporter
    settings = recipe.model_dump(mode="json", exclude={"modal": {"secrets"}})

    def run(step: int) -> TrackedRun:
        return TrackedRun(str(folder.begun.run_id), recipe.name, folder.path, step, settings)

    names = list(dict.fromkeys(recipe.train.report_to))
    return TrackingReporter(reporter, names, run, last_steps(folder.metrics_path))


def _run(attempt: Attempt) -> None:
    """Train on the recipe's engine, and save the adapter."""
    from strop.training.loop import Trainer

    recipe, folder, reporter = attempt.recipe, attempt.folder, attempt.reporter
    held_out = attempt.prepared.data.validation
    with (unsloth_setup if recipe.train.engine == "unsloth" else strop_setup)(attempt) as setup:
        engine = setup.engine
        trainer = Trainer(
            engine, attempt.prepared.data.train, recipe.train, folder, reporter, attempt.stop.check, meter=attempt.meter
        )
        if held_out is not None:
            trainer.evaluate = lambda: setup.evaluate(trainer.check)
        if rows := _sampled_rows(attempt):
            trainer.sample = lambda step: rows.answered(step, setup.generate(trainer.check))
        changes = attempt.begin(engine, trainer.num_steps, setup.sharing_ratio, setup.plan, setup.limit)
        seen = coverage(trainer.num_steps, recipe.train.samples_per_step, len(attempt.prepared.data.train))
        work = f"{counted(trainer.num_steps, 'step')} of {counted(recipe.train.samples_per_step, 'sample')}: {seen}"
        attempt.tell(*changes, *engine.explain(), *setup.notes, work)
        with attempt.watched():
            attempt.resume(trainer)
            adapter = engine.adapter_with(trainer.run())
            attempt.complete(trainer, adapter, _outcome(trainer) if setup.plan is not None else None)


def _refuse_another_run(folder: RunFolder, recipe: Recipe, fingerprints: dict[str, str]) -> None:
    stored = load_recipe(str(folder.path / "recipe.yaml"))
    refuse_changes(folder.begun.fingerprints, fingerprints, differences(stored, recipe))


def _sampled_rows(attempt: Attempt) -> SampledRows | None:
    """The held-out rows to answer during training; None if there are none, or they contain no questions."""
    from strop.evaluation.samples import SampledRows

    data, recipe = attempt.prepared.data, attempt.recipe
    wanted = 2 if recipe.train.sample_rows is None else recipe.train.sample_rows
    if data.validation is None or not wanted:
        return None
    if not data.has_questions or recipe.data.train_on == "all":
        attempt.reporter.note("no samples during training: these rows do not separate question and answer")
        return None
    store = data.validation
    places = [store.place(i) for i in range(min(wanted, len(store)))]
    found = questions_at(recipe.data, places)
    return SampledRows(store, data.template, [found[place] for place in places])


def _outcome(trainer: Trainer) -> Outcome:
    import torch

    from strop.forecast.prediction import Outcome

    progress, meter = trainer.progress, trainer.meter
    return Outcome(
        training_seconds=progress.seconds,
        tokens_per_second=progress.num_tokens / progress.seconds,
        peak_gib=torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_initialized() else None,
        dollars=None if meter is None else meter.dollars,
        steps=(progress.step, trainer.num_steps),
        attempts=trainer.folder.begun.attempts,
    )
