"""The tables of a run: plan beside outcome, data, recipe, environment."""

from collections.abc import Iterable, Sequence
from typing import Any

from strop.reporting.read import RunFiles
from strop.reporting.text import count, cut, dollars, mapping, number, percent, short
from strop.reporting.verdict import Glance
from strop.run.reporter import clock

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
    plan, outcome = mapping(run.manifest.get("plan")), mapping(run.manifest.get("outcome"))
    if plan.get("problem") is not None:
        return []
    so_far = {"training_seconds": seen.seconds, "dollars": seen.cost}
    for name, column in (("tokens_per_second", "tokens_per_second"), ("peak_gib", "peak_memory_gib")):
        values = run.columns.series("train", column).finite.values
        so_far[name] = None if not len(values) else float(values.max() if name == "peak_gib" else values.mean())
    rows = []
    for name, label, form in _PLANNED:
        told = mapping(outcome.get(name))
        predicted = number(told.get("predicted", plan.get(name)))
        actual = number(told.get("actual", so_far[name]))
        if predicted is not None and actual is not None:
            off = number(told.get("off"))
            shown = f"{off:+.0%}" if off is not None else "so far" if run.status == "running" else ""
            rows.append({"label": label, "predicted": form(predicted), "actual": form(actual), "off": shown})
    return rows


def data_rows(run: RunFiles) -> dict[str, Any]:
    """What was in the data: counts, what was left out and why, and how long the samples are."""
    data = mapping(run.manifest.get("data"))
    held_out, lengths = mapping(data.get("held_out")), mapping(data.get("lengths"))
    tokens, learned = number(data.get("num_tokens")), number(data.get("num_loss_tokens"))
    share = f" ({percent(learned / tokens)})" if tokens and learned is not None else ""
    rows: list[Row] = [
        ("Shape of the rows", cut(run.manifest.get("format", ""), _MOST)),
        ("Template", cut(run.manifest.get("template", ""), _MOST)),
        ("Training rows", count(data.get("rows"))),
        ("Tokens", count(tokens)),
        ("Learned tokens", f"{count(learned)}{share}"),
        ("Held-out rows", count(held_out.get("rows"))),
        ("Held-out tokens learned", count(held_out.get("num_loss_tokens"))),
        ("Tokens a sample", _lengths(lengths)),
        ("Cut at the limit", count(data.get("truncated"))),
        ("Repeated rows", count(data.get("duplicates"))),
        ("Held-out rows also trained on", count(held_out.get("overlap_rows"))),
        ("Held-out questions also trained on", count(held_out.get("overlap_prompts"))),
    ]
    skipped = [(cut(reason, _MOST), count(rows)) for reason, rows in mapping(data.get("skipped")).items()]
    return {
        "rows": [row for row in rows if row[1] not in ("", "–")],
        "skipped": skipped[:50],
        "histogram": _histogram(lengths),
    }


def _lengths(lengths: dict[str, Any]) -> str:
    parts = [number(lengths.get(key)) for key in ("min", "median", "p95", "max")]
    if None in parts:
        return "–"
    least, median, p95, most = (count(part) for part in parts)
    return f"{least} to {most}; half have at most {median}, 95% at most {p95}"


def _histogram(lengths: dict[str, Any]) -> list[dict[str, str]]:
    edges, counts = lengths.get("edges"), lengths.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
        return []
    bars = [(number(low), number(high), number(of)) for low, high, of in zip(edges, edges[1:], counts, strict=False)]
    if any(part is None for bar in bars for part in bar) or len(bars) > 50:
        return []
    most = max((of for _, _, of in bars if of), default=0.0)
    return [
        {"range": f"{count(low)}–{count((high or 0) - 1)}", "count": count(of), "tenths": str(round(40 * of / most))}
        for low, high, of in bars
        if of
    ]


def environment_rows(run: RunFiles) -> list[Row]:
    """Where it ran and what with."""
    manifest = run.manifest
    names = (
        ("Device", "device"),
        ("Precision", "precision"),
        ("Most tokens a microbatch", "max_tokens_per_microbatch"),
        ("Trained parameters", "num_trainable"),
        ("Rows’ tokens for each computed", "sharing_ratio"),
        ("Begun", "created"),
        ("Attempts", "attempts"),
        ("Run", "run_id"),
        ("strop", "strop"),
        ("torch", "torch"),
        ("Python", "python"),
        ("Platform", "platform"),
    )
    rows = [(label, _plain(manifest[key])) for label, key in names if manifest.get(key) is not None]
    marks = mapping(manifest.get("fingerprints"))
    rows += [(f"Fingerprint, {cut(name, 100)}", cut(mark, 100)[:12]) for name, mark in list(marks.items())[:20]]
    return rows


def _plain(value: Any) -> str:
    return (
        short(number(value))
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else cut(value, _MOST)
    )


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
