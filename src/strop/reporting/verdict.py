"""What a reader wants to know first: did it learn, how long did it take, what did it cost, what is next."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np

from strop.evaluation.result import Interval
from strop.readable import clock, counted
from strop.reporting.read import RunFiles
from strop.reporting.scores import signed
from strop.reporting.series import Series
from strop.reporting.text import count, dollars, percent, points, short
from strop.run.records import base_and_adapter


@dataclass(frozen=True)
class Glance:
    """A run's figures, None where they are not known.

    Attributes:
        losses: On held-out rows: the base's, and the tuned model's or, while it trains, at the last evaluation.
        seconds: Of training, over all attempts.
        cost: In dollars, over all attempts.
    """

    headline: str
    sentence: str
    step: int
    num_steps: int | None
    losses: tuple[float | None, float | None]
    exact: tuple[float | None, float | None]
    seconds: float | None
    cost: float | None
    tiles: list[dict[str, str]]
    next_commands: list[str]


def glance(run: RunFiles) -> Glance:
    """Read it off a run's files."""
    steps = run.columns.series("train", "loss").steps
    progress, num_steps = run.manifest.progress, run.manifest.num_steps
    step = int(steps[-1]) if len(steps) else progress.step if progress else 0
    seconds, cost = _seconds(run), _cost(run)
    losses, exact = _losses(run), _scored(run, "exact_match")
    headline = _headline(run, step, num_steps, losses)
    return Glance(
        headline=headline,
        sentence=_sentence(run, losses, exact),
        step=step,
        num_steps=num_steps,
        losses=losses,
        exact=exact,
        seconds=seconds,
        cost=cost,
        tiles=_tiles(run, losses, exact, seconds, cost, step, num_steps),
        next_commands=_next(run),
    )


def _seconds(run: RunFiles) -> float | None:
    if run.manifest.progress is not None:
        return run.manifest.progress.seconds
    tokens, speed = (run.columns.series("train", name) for name in ("num_tokens", "tokens_per_second"))
    if not len(tokens) or len(tokens) != len(speed):
        return None
    sound = speed.values > 0
    return _finite((tokens.values[sound] / speed.values[sound]).sum())


def _cost(run: RunFiles) -> float | None:
    so_far = run.columns.series("train", "dollars").finite
    return float(so_far.values[-1]) if run.status == "running" and len(so_far) else run.manifest.dollars


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _scored(run: RunFiles, metric: str) -> tuple[float | None, float | None]:
    """The base's and the tuned model's figure."""
    if run.evaluation is None:
        return None, None
    base, tuned = run.evaluation.base.get(metric), run.evaluation.tuned.get(metric)
    return base.value if base else None, tuned.value if tuned else None


def _difference(run: RunFiles, metric: str) -> Interval | None:
    return run.evaluation.difference.get(metric) if run.evaluation else None


def _losses(run: RunFiles) -> tuple[float | None, float | None]:
    scored = _scored(run, "nll")
    if None not in scored:
        return scored
    held_out = run.columns.series("eval", "eval_loss").finite
    pairs = zip(map(int, held_out.steps), map(float, held_out.values), strict=True)
    return base_and_adapter(pairs, run.manifest.adapter_step)


def _headline(run: RunFiles, step: int, num_steps: int | None, losses: tuple[float | None, float | None]) -> str:
    where = f"step {step:,}" + (f" of {num_steps:,}" if num_steps else "")
    if run.status == "running":
        return f"Training: {where}"
    if run.status in ("interrupted", "failed"):
        return f"{run.status.capitalize()} at {where}"
    if (change := _difference(run, "nll")) is not None:
        return _learned(run) if change.high < 0 else "It got worse" if change.low > 0 else "No clear difference"
    before, after = losses
    if before is None or after is None:
        return "Finished" if run.status == "finished" else where.capitalize()
    return f"The held-out loss {_moved(before, after)}"


def _learned(run: RunFiles) -> str:
    """The headline of a loss that has clearly fallen, by what became of the answers."""
    change, f1 = _difference(run, "exact_match"), _difference(run, "token_f1")
    right = [_scored(run, metric)[1] for metric in ("exact_match", "numeric_match")]
    if change is not None and change.high < 0:
        return "The loss fell, but fewer answers are right"
    if right[0] is None or any(right):
        return "It learned"
    closer = f1 is not None and f1.low > 0
    return "Closer to the references, but no answer is exact" if closer else "The loss fell, but no answer is right"


def _moved(before: float, after: float) -> str:
    return "fell" if after < before else "rose" if after > before else "did not move"


def _sentence(
    run: RunFiles, losses: tuple[float | None, float | None], exact: tuple[float | None, float | None]
) -> str:
    parts = []
    before, after = losses
    if after is None:
        parts.append("No rows were evaluated, so nothing here tells learning from memorising.")
    elif before is not None:
        ends = f"from {short(before)} to {short(after)} nats a token"
        parts.append(f"The loss on held-out rows {_moved(before, after)}, {ends}.")
    tuned = run.evaluation.tuned.get("exact_match") if run.evaluation else None
    if tuned is not None and exact[0] is not None:
        parts.append(
            f"Of {counted(tuned.count, 'held-out question')} the tuned model answers {percent(tuned.value)} exactly "
            f"(95% interval {percent(tuned.low)} to {percent(tuned.high)}), the base {percent(exact[0])}."
        )
    return " ".join(parts)


def _tiles(
    run: RunFiles,
    losses: tuple[float | None, float | None],
    exact: tuple[float | None, float | None],
    seconds: float | None,
    cost: float | None,
    step: int,
    num_steps: int | None,
) -> list[dict[str, str]]:
    speed = run.columns.series("train", "tokens_per_second").finite
    change = _difference(run, "exact_match")
    predicted = run.manifest.plan.dollars if run.manifest.plan else None
    took = "–" if seconds is None else clock(seconds)
    left = _left(run, step, num_steps)
    return [
        {
            "label": "Held-out loss",
            "value": _arrow(losses, short),
            "detail": "nats a token" if losses[0] is None else "base → tuned, nats a token",
        },
        {
            "label": "Exact match",
            "value": _arrow(exact, percent),
            "detail": f"{signed(change.value, points)} over {counted(change.count, 'question')}"
            if change
            else "strop evaluate measures it",
        },
        {
            "label": "Training time",
            "value": took,
            "detail": f"about {clock(left)} left"
            if left
            else f"{counted(step, 'step')}, {_median(speed)} tokens a second",
        },
        {
            "label": "Cost",
            "value": "$0" if cost is None else dollars(cost),
            "detail": f"on {run.manifest.device or 'an unknown device'}, not billed"
            if cost is None
            else (f"planned {dollars(predicted)}" if predicted is not None else "by the price list"),
        },
    ]


def _median(speed: Series) -> str:
    return count(float(np.median(speed.values))) if len(speed) else "–"


def _left(run: RunFiles, step: int, num_steps: int | None) -> float | None:
    """Seconds, from the last steps' own time."""
    tokens, speed = (run.columns.series("train", name) for name in ("num_tokens", "tokens_per_second"))
    if run.status != "running" or num_steps is None or len(tokens) != len(speed) or not len(speed):
        return None
    last = slice(-50, None)
    sound = speed.values[last] > 0
    each = (tokens.values[last][sound] / speed.values[last][sound]).mean() if sound.any() else 0.0
    return _finite(float(each) * max(0, num_steps - step))


def _arrow(pair: tuple[float | None, float | None], form: Any) -> str:
    before, after = pair
    if after is None:
        return "–"
    return form(after) if before is None else f"{form(before)} → {form(after)}"


def _next(run: RunFiles) -> list[str]:
    path = shlex.quote(str(run.path))
    if run.status in ("interrupted", "failed"):
        return [f"strop train {path}"]
    if run.status != "finished":
        return []
    return [f"strop chat {path}"] if run.evaluation else [f"strop evaluate {path}", f"strop chat {path}"]
