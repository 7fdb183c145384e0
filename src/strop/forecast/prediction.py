"""The prediction for a run and, afterwards, how far off it was.

A prediction is either measured (`strop plan` ran on the same device and kept it in the run folder) or scaled.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from strop import __version__
from strop.errors import RecipeError, StorageError
from strop.forecast.estimate import PlannedRun, scaled
from strop.gpus import modal_name
from strop.modal_runs.prices import STORED
from strop.readable import clock
from strop.run.cost import Meter
from strop.run.folder import RunFolder
from strop.run.manifest import Compared, Estimate, KeptEstimate, says_much


def prediction(job: PlannedRun, folder: RunFolder, device: str, meter: Meter | None) -> Estimate | None:
    """The prediction for this run on this device: what `strop plan` measured here, or a scaled one.

    Args:
        job: The run.
        folder: The run's folder.
        device: The driver's name for the device.
        meter: Of a run that is billed.

    Returns:
        The prediction; None if nothing was measured here and the device has no published figures.
    """
    kept = folder.plan
    if kept and kept.device.lower() == device.lower() and kept.of == _key(job):
        line = kept.line
    elif kind := modal_name(device):
        line = scaled(job, kind, STORED)
    else:
        return None
    if meter is None or line.problem is not None:
        return line
    return replace(line, gpu=meter.gpu, dollars=line.seconds * meter.dollars_per_second)


def keep_prediction(job: PlannedRun, device: str, line: Estimate, note: Callable[[str], None]) -> None:
    """Save a measured prediction in the run folder, unless the run has begun.

    Args:
        job: The run.
        device: The device on which it was measured.
        line: The prediction.
        note: Called with the reason if the prediction is not saved.
    """
    folder = RunFolder(job.recipe.output_dir)
    try:
        with folder.claim():
            if folder.manifest is not None:
                note(f"{folder.path}: this run has already begun and keeps its first prediction")
                return
            folder.write_plan(KeptEstimate(device, _key(job), line.rounded()))
    except (RecipeError, StorageError) as error:
        note(f"the prediction was not saved: {error}")


def _key(job: PlannedRun) -> str:
    """What a measured prediction is valid for: the same recipe, rows and version of strop."""
    recipe = job.recipe
    parts = [__version__, recipe.identity(), job.train.fingerprint, recipe.train.max_tokens_per_microbatch]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run took, over all attempts.

    Attributes:
        training_seconds: Time for steps and checkpoints.
        tokens_per_second: Tokens of the rows per second.
        peak_gib: Peak memory that torch reserved in the last attempt; None on a CPU.
        dollars: None if nothing was billed.
        steps: Updates made and updates planned; early stopping makes fewer.
        attempts: How often the run was started.
    """

    training_seconds: float
    tokens_per_second: float
    peak_gib: float | None
    dollars: float | None
    steps: tuple[int, int]
    attempts: int

    def beside(self, line: Estimate) -> dict[str, Compared]:
        """Each figure next to its prediction, with the relative error, for the manifest."""
        share = self.steps[0] / self.steps[1]
        pairs = {
            "training_seconds": (line.training_seconds * share, self.training_seconds),
            "tokens_per_second": (line.tokens_per_second, self.tokens_per_second),
            "peak_gib": (line.peak_gib, self.peak_gib),
            "dollars": (line.dollars and line.dollars * share, self.dollars),
        }
        return {
            name: Compared(round(before, 4), round(after, 4), round(before / after - 1, 4))
            for name, (before, after) in pairs.items()
            if before and after
        }


_SHOWN = {
    "training_seconds": ("training took", clock),
    "tokens_per_second": ("tok/s", "{:,.0f}".format),
    "peak_gib": ("GiB", "{:.1f}".format),
    "dollars": ("$", "{:.2f}".format),
}


def sentence(line: Estimate, beside: Mapping[str, Compared], attempts: int) -> str:
    """One line that says how far off the plan was."""
    parts = []
    for name, (label, show) in _SHOWN.items():
        if found := beside.get(name):
            off = f" ({found.off:+.0%})" if says_much(beside) else ""
            parts.append(f"{label} {show(found.actual)}, predicted {show(found.predicted)}{off}")
    several = f" ({attempts} attempts)" if attempts > 1 else ""
    short = "" if says_much(beside) else "; a run of seconds says little of a plan"
    return f"plan ({line.source}){several}: {'; '.join(parts)}{short}"


def compare(folder: RunFolder, outcome: Outcome, note: Callable[[str], None]) -> None:
    """Write how far off a finished run's prediction was into its manifest, and say so in one line."""
    predicted = folder.begun.plan
    if predicted is None or predicted.problem is not None:
        return
    beside = outcome.beside(predicted)
    folder.update(lambda manifest: replace(manifest, outcome=beside))
    note(sentence(predicted, beside, outcome.attempts))
