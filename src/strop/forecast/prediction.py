"""What was predicted for a run: measured by `strop plan` on the same device and kept in the run folder, or scaled."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

from strop import __version__
from strop.errors import RecipeError
from strop.forecast.estimate import Estimate, PlannedRun, scaled
from strop.forecast.gpus import modal_name
from strop.modal_runs.prices import STORED
from strop.run.cost import Meter
from strop.run.folder import RunFolder


def prediction(job: PlannedRun, folder: RunFolder, device: str, meter: Meter | None) -> Estimate | None:
    """What was predicted for this run on this device: measured by `strop plan` here, or scaled.

    Args:
        job: The run.
        folder: Its folder.
        device: The device's name, as the driver gives it.
        meter: Of a run that is billed.

    Returns:
        The prediction; None on a device that nothing is published of and nothing was measured on.
    """
    kept = folder.plan
    if kept.get("device", "").lower() == device.lower() and kept.get("of") == _key(job):
        line = Estimate.from_json(kept["line"])
    elif kind := modal_name(device):
        line = scaled(job, kind, STORED)
    else:
        return None
    if meter is None or line.problem is not None:
        return line
    return replace(line, gpu=meter.gpu, dollars=line.seconds * meter.dollars_per_second)


def keep_prediction(job: PlannedRun, device: str, line: Estimate, note: Callable[[str], None]) -> None:
    """Keep a measured prediction in the run folder, unless the run has begun.

    Args:
        job: The run.
        device: Where it was measured.
        line: The prediction.
        note: Told why it is not kept, if it is not.
    """
    folder = RunFolder(job.recipe.output_dir)
    try:
        with folder.claim():
            if folder.manifest:
                note(f"{folder.path}: this run has begun, and keeps the prediction that it began with")
                return
            folder.write_plan({"device": device, "of": _key(job), "line": line.to_json()})
    except RecipeError as error:
        note(f"the prediction is not kept: {error}")


def _key(job: PlannedRun) -> str:
    """What a measured prediction is of: another recipe, other rows or another strop make another run."""
    recipe = job.recipe
    parts = [__version__, recipe.identity(), job.train.fingerprint, recipe.train.max_tokens_per_microbatch]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
