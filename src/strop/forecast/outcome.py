"""After the run: the prediction beside what happened."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strop.forecast.estimate import Estimate
from strop.run.folder import RunFolder
from strop.run.reporter import clock


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

    def beside(self, line: Estimate) -> dict[str, Any]:
        """Each figure with its prediction, and how far off that was, for the manifest."""
        share = self.steps[0] / self.steps[1]
        pairs = {
            "training_seconds": (line.training_seconds * share, self.training_seconds),
            "tokens_per_second": (line.tokens_per_second, self.tokens_per_second),
            "peak_gib": (line.peak_gib, self.peak_gib),
            "dollars": (line.dollars and line.dollars * share, self.dollars),
        }
        return {
            name: {"predicted": round(before, 4), "actual": round(after, 4), "off": round(before / after - 1, 4)}
            for name, (before, after) in pairs.items()
            if before and after
        }


_SHOWN = {
    "training_seconds": ("training took", clock),
    "tokens_per_second": ("tok/s", "{:,.0f}".format),
    "peak_gib": ("GiB", "{:.1f}".format),
    "dollars": ("$", "{:.2f}".format),
}


def sentence(line: Estimate, beside: dict[str, Any], attempts: int) -> str:
    """How far off the plan was, in one line."""
    parts = []
    for name, (label, show) in _SHOWN.items():
        if found := beside.get(name):
            parts.append(f"{label} {show(found['actual'])}, predicted {show(found['predicted'])} ({found['off']:+.0%})")
    several = f" ({attempts} attempts)" if attempts > 1 else ""
    return f"plan ({line.source}){several}: {'; '.join(parts)}"


def compare(folder: RunFolder, outcome: Outcome, note: Callable[[str], None]) -> None:
    """Enter in the manifest of a finished run how wrong its prediction was, and say so in a line."""
    predicted = folder.manifest.get("plan")
    if predicted is None or predicted["problem"] is not None:
        return
    line = Estimate.from_json(predicted)
    beside = outcome.beside(line)
    folder.update_manifest(outcome=beside)
    note(sentence(line, beside, outcome.attempts))
