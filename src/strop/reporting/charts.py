"""What the page's charts draw, for all runs together: JSON of numbers and nothing else but the runs' names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strop.reporting.read import RunFiles
from strop.reporting.series import Series, smoothed, thinned
from strop.reporting.text import shown


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        name: Of the element that holds it.
        title: What a reader calls it.
        unit: Beside the title.
        lines: Kind of record, figure and label of each line; `eval` ones are drawn with points.
        smooth: Draw the raw values faint under their mean.
        log: Offer a logarithmic scale.
    """

    name: str
    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]
    smooth: bool = False
    log: bool = False


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats a token",
        (("train", "loss", "training"), ("eval", "eval_loss", "held out")),
        smooth=True,
        log=True,
    ),
    Chart("learning_rate", "Learning rate", "", (("train", "learning_rate", ""),)),
    Chart("grad_norm", "Gradient norm", "before clipping", (("train", "grad_norm", ""),), smooth=True, log=True),
    Chart("tokens_per_second", "Throughput", "tokens a second", (("train", "tokens_per_second", ""),), smooth=True),
    Chart("share", "Share of the GPU’s limit", "%", (("train", "share", ""),), smooth=True),
    Chart(
        "rank_seconds",
        "A rank’s part of a step",
        "seconds",
        (("train", "slowest_rank", "the slowest"), ("train", "fastest_rank", "the fastest")),
    ),
    Chart("peak_memory_gib", "Peak memory", "GiB", (("train", "peak_memory_gib", ""),)),
    Chart("dollars", "Cost so far", "$", (("train", "dollars", ""),)),
)


def gpu_share(run: RunFiles) -> Series:
    """How much of the GPU's published rate each step's products with frozen weights took, in percent."""
    limit = run.manifest.limit
    parts = [
        run.columns.series("train", name)
        for name in ("num_tokens", "num_executed_tokens", "num_loss_tokens", "tokens_per_second")
    ]
    steps = parts[0].steps
    if limit is None or any(not np.array_equal(part.steps, steps) for part in parts):
        return Series(np.array([]), np.array([]))
    tokens, executed, losses, speed = (part.values for part in parts)
    with np.errstate(all="ignore"):
        return Series(
            steps,
            100 * (executed * limit.seconds_per_token + losses * limit.seconds_per_learned_token) * speed / tokens,
        ).finite


def chart_data(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """The charts that have anything to draw, each with the lines of every run."""
    charts = [_chart(chart, runs) for chart in CHARTS]
    return {"runs": [shown(run.name) for run in runs], "charts": [chart for chart in charts if chart["lines"]]}


def _chart(chart: Chart, runs: Sequence[RunFiles]) -> dict[str, Any]:
    lines, windows, thin = [], set(), False
    for index, run in enumerate(runs):
        for kind, name, label in chart.lines:
            raw = gpu_share(run) if name == "share" else run.columns.series(kind, name)
            few = thinned(raw)
            if not len(few):
                continue
            thin |= len(few) < len(raw.finite)
            line = {"run": index, "label": label, "points": kind == "eval", "raw": _points(few)}
            if chart.smooth and kind == "train":
                means, window = smoothed(raw)
                if window > 1:
                    windows.add(window)
                    line["mean"] = _points(thinned(means))
            lines.append(line)
    return {
        "name": chart.name,
        "title": chart.title,
        "unit": chart.unit,
        "log": chart.log,
        "lines": lines,
        "note": _note(sorted(windows), thin),
    }


def _note(windows: list[int], thin: bool) -> str:
    parts = []
    if windows:
        steps = " or ".join(f"{window:,}" for window in windows)
        parts.append(f"Faint: every step. Strong: the mean of the {steps} steps around it.")
    if windows and thin:
        parts.append("Each stretch of steps is drawn by its lowest and its highest value.")
    return " ".join(parts)


def _points(series: Series) -> list[list[float]]:
    return [[int(step) for step in series.steps], [float(f"{value:.6g}") for value in series.values]]
