"""The tables of a run: plan beside outcome, data, recipe, environment."""

from collections.abc import Iterable, Sequence
from typing import Any

from strop.readable import clock, counted
from strop.reporting.read import RunFiles
from strop.reporting.text import count, cut, dollars, percent, short
from strop.reporting.verdict import Glance
from strop.run.manifest import HeldOutRows, Lengths, TrainingRows, says_much

_MOST = 1000
"""Characters of a value."""

Row = tuple[str, str]

_PLANNED = (
    ("training_seconds", "Training time", clock),
    ("tokens_per_second", "Tokens a second", count),
    ("peak_gib", "Peak memory, GiB", lambda value: f"{value:.1f}"),
    ("dollars", "Cost", dollars),
)


def plan_rows(run: RunFiles, seen: Glance) -> list[dict[str, str]]:
    """What was predicted beside what happened, or has happened so far."""
    plan = run.manifest.plan
    if plan is None or plan.problem is not None:
        return []
    so_far = {"training_seconds": seen.seconds, "dollars": seen.cost}
    for name, column in (("tokens_per_second", "tokens_per_second"), ("peak_gib", "peak_memory_gib")):
        values = run.columns.series("train", column).finite.values
        so_far[name] = None if not len(values) else float(values.max() if name == "peak_gib" else values.mean())
    rows = []
    for name, label, form in _PLANNED:
        found = run.manifest.outcome.get(name)
        predicted: float | None = found.predicted if found else getattr(plan, name)
        actual = found.actual if found else so_far[name]
        if predicted is not None and actual is not None:
            off = (
                f"{found.off:+.0%}"
                if found and says_much(run.manifest.outcome)
                else "so far"
                if run.status == "running"
                else ""
            )
            rows.append({"label": label, "predicted": form(predicted), "actual": form(actual), "off": off})
    return rows


def data_rows(run: RunFiles) -> dict[str, Any]:
    """What was in the data: counts, what was skipped and why, and how long the samples are."""
    data = run.manifest.data or TrainingRows()
    held_out = data.held_out or HeldOutRows()
    tokens, learned = data.num_tokens, data.num_loss_tokens
    share = f" ({percent(learned / tokens)})" if tokens and learned is not None else ""
    rows: list[Row] = [
        ("Shape of the rows", cut(run.manifest.format or "", _MOST)),
        ("Template", cut(run.manifest.template or "", _MOST)),
        ("Training rows", count(data.rows)),
        ("Samples", count(data.samples) if data.samples != data.rows else ""),
        ("Seen in training", seen_in_training(run) or ""),
        *_sources(data),
        ("Keys not used", cut(", ".join(data.unused), _MOST)),
        ("Tokens", count(tokens)),
        ("Learned tokens", f"{count(learned)}{share}"),
        ("Held-out rows", count(held_out.rows)),
        ("Held-out tokens learned", count(held_out.num_loss_tokens)),
        ("Tokens a sample", _lengths(data.lengths)),
        ("Cut at the limit", count(data.truncated)),
        ("Tokens cut off", count(data.tokens_cut) if data.tokens_cut else ""),
        ("Repeated rows", count(data.duplicates)),
        ("Held-out rows also trained on", count(held_out.overlap_rows)),
        ("Held-out questions also trained on", count(held_out.overlap_prompts)),
    ]
    skipped = [(cut(reason, _MOST), count(rows)) for reason, rows in data.skipped.items()]
    return {
        "rows": [row for row in rows if row[1] not in ("", "–")],
        "skipped": skipped[:50],
        "histogram": _histogram(data.lengths),
    }


def seen_in_training(run: RunFiles) -> str | None:
    """How many of its samples a finished run has seen, such as `12 of 2,844 samples`; None if all, or not known."""
    data, step = run.manifest.data, run.manifest.adapter_step
    sizes = [
        run.recipe.get(f"train.{key}", "") for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    ]
    if data is None or step is None or not all(size.isdecimal() for size in sizes):
        return None
    epoch = sum(each.epoch_samples or 0 for each in data.sources) or data.samples or 0
    seen = step * int(sizes[0]) * int(sizes[1])
    return f"{seen:,} of {counted(epoch, 'sample')}" if seen < epoch else None


def _sources(data: TrainingRows) -> list[Row]:
    """The sources of a mixture, with their parts of an epoch."""
    if len(data.sources) < 2:
        return []
    return [
        (
            f"From {cut(each.name, 200)}",
            f"{counted(each.samples or 0, 'sample')}, {percent(each.epoch_share or 0)} of an epoch",
        )
        for each in data.sources[:50]
    ]


def _lengths(lengths: Lengths | None) -> str:
    if lengths is None:
        return "–"
    least, median, p95, most = map(count, (lengths.min, lengths.median, lengths.p95, lengths.max))
    return f"{least} to {most}; half have at most {median}, 95% at most {p95}"


def _histogram(lengths: Lengths | None) -> list[dict[str, str]]:
    if lengths is None or len(lengths.edges) != len(lengths.counts) + 1 or len(lengths.counts) > 50:
        return []
    most = max(lengths.counts, default=0)
    return [
        {"range": f"{count(low)}–{count(high - 1)}", "count": count(of), "tenths": str(round(40 * of / most))}
        for low, high, of in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False)
        if of > 0
    ]


def environment_rows(run: RunFiles) -> list[Row]:
    """Where it ran and what with."""
    manifest = run.manifest
    values = (
        ("Device", manifest.device),
        ("GPUs that divided each step", manifest.ranks if (manifest.ranks or 1) > 1 else None),
        ("Precision", manifest.precision),
        ("Most tokens a microbatch", manifest.max_tokens_per_microbatch),
        ("Trained parameters", manifest.num_trainable),
        ("Rows’ tokens for each computed", manifest.sharing_ratio),
        ("Begun", manifest.created),
        ("Attempts", manifest.attempts or None),
        ("Run", manifest.run_id),
        ("strop", manifest.strop),
        ("torch", manifest.torch),
        ("Python", manifest.python),
        ("Platform", manifest.platform),
    )
    rows = [(label, _plain(value)) for label, value in values if value is not None]
    marks = list(manifest.fingerprints.items())[:20]
    return rows + [(f"Fingerprint, {cut(name, 100)}", cut(mark, 100)[:12]) for name, mark in marks]


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return cut(value, _MOST)
    return f"{value:,}" if isinstance(value, int) else short(value)


def recipe_sections(recipe: dict[str, str]) -> list[tuple[str, list[Row]]]:
    """The recipe's values by section."""
    sections: dict[str, list[Row]] = {}
    for key, value in recipe.items():
        section, dot, name = key.partition(".")
        sections.setdefault(section if dot else "", []).append((cut(name if dot else key, 200), cut(value, _MOST)))
    return [(cut(section, 200), rows[:200]) for section, rows in sections.items()][:50]


def differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Recipe keys whose values are not the same in all runs, with each run's value."""
    keys: Iterable[str] = dict.fromkeys(key for run in runs for key in run.recipe)
    rows = [(cut(key, 200), [cut(run.recipe.get(key, "–"), _MOST) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1][:200]
