"""What was predicted for a run, and after it, how far off that was.

A prediction was measured by `strop plan` on the same device and kept in the run folder, or is scaled.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from strop import __version__
from strop.errors import RecipeError
from strop.forecast.estimate import PlannedRun, scaled
from strop.gpus import modal_name
from strop.modal_runs.prices import STORED
from strop.run.cost import Meter
from strop.run.folder import RunFolder
from strop.run.manifest import Compared, Estimate, KeptEstimate
from strop.run.reporter import clock


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
            if folder.manifest is not None:
                note(f"{folder.path}: this run has begun, and keeps the prediction that it began with")
                return
            folder.write_plan(KeptEstimate(device, _key(job), line.rounded()))
    except RecipeError as error:
        note(f"the prediction is not kept: {error}")


def _key(job: PlannedRun) -> str:
    """What a measured prediction is of: another recipe, other rows or another strop make another run."""
    recipe = job.recipe
    parts = [__version__, recipe.identity(), job.train.fingerprint, recipe.train.max_tokens_per_microbatch]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run took, over all attempts.

    Attributes:
        training_seconds: Steps and checkpoints.
        tokens_per_second: Tokens of the rows.
        peak_gib: The most memory that torch reserved in the last attempt; None on a CPU.
        dollars: None if nothing was billed.
        steps: Updates made and updates planned; early stopping may have ended the run before.
        attempts: How often the run was started.
    """

    training_seconds: float
    tokens_per_second: float
    peak_gib: float | None
    dollars: float | None
    steps: tuple[int, int]
    attempts: int

    def beside(self, line: Estimate) -> dict[str, Compared]:
        """Each figure with its prediction, and how far off that was, for the manifest."""
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
    """How far off the plan was, in one line."""
    parts = []
    for name, (label, show) in _SHOWN.items():
        if found := beside.get(name):
            parts.append(f"{label} {show(found.actual)}, predicted {show(found.predicted)} ({found.off:+.0%})")
    several = f" ({attempts} attempts)" if attempts > 1 else ""
    return f"plan ({line.source}){several}: {'; '.join(parts)}"


def compare(folder: RunFolder, outcome: Outcome, note: Callable[[str], None]) -> None:
    """Write into the manifest of a finished run how far off its prediction was, and say so in a line."""
    predicted = folder.begun.plan
    if predicted is None or predicted.problem is not None:
        return
    beside = outcome.beside(predicted)
    folder.update(lambda manifest: replace(manifest, outcome=beside))
    note(sentence(predicted, beside, outcome.attempts))
