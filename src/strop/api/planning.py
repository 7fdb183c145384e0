"""What a run will take and cost, before it and on each GPU; and afterwards, how wrong that was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from strop.api.loading import load_model
from strop.api.preparing import Prepared, prepare
from strop.errors import RecipeError
from strop.recipe import GPUS, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.forecast.estimate import Estimate, Plan, PlannedRun
    from strop.forecast.outcome import Outcome
    from strop.forecast.probe import Probe
    from strop.run.cost import Meter
    from strop.run.folder import RunFolder


def plan(recipe: Recipe, note: Callable[[str], None] = lambda line: None, probing: bool | None = None) -> Plan:
    """Predict memory, speed, time and dollars of a run on each of Modal's GPUs. Needs no GPU and no weights.

    Args:
        recipe: From `load_recipe`.
        note: Told of what takes a while, and of what is chosen.
        probing: Load the model here and time some of the recipe's steps; None: if there is a GPU. What is measured
            is kept in the run folder, where a run that begins on the same device compares itself with it.

    Raises:
        RecipeError, ModelError, DataError: What would stop the run.
        OutOfMemoryError: A probe does not fit on this GPU.
    """
    from strop.data.audit import refuse
    from strop.forecast.estimate import measured, plan_of
    from strop.modal_runs.prices import current_prices
    from strop.model.precision import choose_device

    probes = choose_device().type == "cuda" if probing is None else probing
    prepared = prepare(recipe, note, needs_weights=probes)
    refuse(prepared.report)
    prices, job, here = current_prices(), _job(recipe, prepared), None
    if probes:
        found = _probe(recipe, prepared, note)
        here = measured(job, _modal_name(recipe, found.device), found, prices)
        _keep(recipe, prepared, found, here, note)
    return plan_of(job, prices, GPUS, here)


def prediction(
    recipe: Recipe, prepared: Prepared, folder: RunFolder, device: str, meter: Meter | None
) -> Estimate | None:
    """What was predicted for this run on this device: measured by `strop plan` here, or scaled; None on other devices.

    Args:
        recipe: The run's.
        prepared: Its data and model.
        folder: Its folder.
        device: The device's name, as the driver gives it.
        meter: Of a run that is billed.
    """
    from strop.forecast.estimate import Estimate, scaled
    from strop.forecast.gpus import modal_name
    from strop.modal_runs.prices import STORED

    kept = folder.plan
    if kept.get("device", "").lower() == device.lower() and kept.get("of") == _key(recipe, prepared):
        line = Estimate.from_json(kept["line"])
    elif kind := modal_name(device):
        line = scaled(_job(recipe, prepared), kind, STORED)
    else:
        return None
    if meter is None or line.problem is not None:
        return line
    return replace(line, gpu=meter.gpu, dollars=line.seconds * meter.dollars_per_second)


def compare(folder: RunFolder, outcome: Outcome, note: Callable[[str], None]) -> None:
    """Enter in the manifest of a finished run how wrong its prediction was, and say so in a line."""
    from strop.forecast.estimate import Estimate
    from strop.forecast.outcome import sentence

    predicted = folder.manifest.get("plan")
    if predicted is None or predicted["problem"] is not None:
        return
    line = Estimate.from_json(predicted)
    beside = outcome.beside(line)
    folder.update_manifest(outcome=beside)
    note(sentence(line, beside, outcome.attempts))


def _job(recipe: Recipe, prepared: Prepared) -> PlannedRun:
    from strop.forecast.estimate import PlannedRun

    return PlannedRun(recipe, prepared.config, prepared.data.train, prepared.data.validation)


def _probe(recipe: Recipe, prepared: Prepared, note: Callable[[str], None]) -> Probe:
    from strop.forecast.probe import probe
    from strop.run.reporter import Reporter

    reporter = Reporter()
    reporter.note = note  # type: ignore[assignment, method-assign]
    return probe(recipe, load_model(recipe, prepared.model_folder, reporter), prepared.data.train)


def _modal_name(recipe: Recipe, device: str) -> str:
    from strop.forecast.gpus import modal_name

    return modal_name(device) or device


def _key(recipe: Recipe, prepared: Prepared) -> str:
    """What a measured prediction is of: another recipe, other rows or another strop are another run."""
    from strop import __version__

    parts = [__version__, recipe.identity(), prepared.data.train.fingerprint, recipe.train.max_tokens_per_microbatch]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _keep(recipe: Recipe, prepared: Prepared, found: Probe, line: Estimate, note: Callable[[str], None]) -> None:
    from strop.run.folder import RunFolder

    folder = RunFolder(recipe.output_dir)
    try:
        with folder.claim():
            if folder.manifest:
                note(f"{folder.path}: this run has begun, and keeps the prediction that it began with")
                return
            folder.write_plan({"device": found.device, "of": _key(recipe, prepared), "line": line.to_json()})
    except RecipeError as error:
        note(f"the prediction is not kept: {error}")
