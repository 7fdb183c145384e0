"""After the run: the prediction beside what happened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from strop.run.folder import RunFolder
from strop.run.manifest import Compared, Estimate
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
