"""What models said: base beside tuned on held-out questions, and the samples of the training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from markupsafe import escape

from strop.reporting.text import count, cut, mapping, number, percent, points, short

MOST_EXAMPLES, MOST_SAMPLED_ROWS, MOST_STEPS = 200, 6, 12
"""Questions with both answers; questions sampled in training; answers to each of those."""

_MOST_CHARACTERS = 3000
"""Of one text."""

_MOST_BYTES = 1_500_000
"""Of all texts of a page as HTML, for each of the two lists: the page has to stay one that a phone opens."""

Form = Callable[[float | None], str]

METRICS: tuple[tuple[str, str, Form], ...] = (
    ("nll", "Loss, nats a token", short),
    ("perplexity", "Perplexity", short),
    ("exact_match", "Exact match", percent),
    ("numeric_match", "Numbers match", percent),
    ("token_f1", "Token F1", percent),
    ("stopped", "Stopped by itself", percent),
)


def score_rows(base: Any, tuned: Any, difference: Any = None) -> list[dict[str, str]]:
    """A row for each metric that either model has, each figure with its 95% interval."""
    rows = []
    for name, label, form in METRICS:
        cells = [_interval(mapping(scores).get(name), form) for scores in (base, tuned)]
        if any(cells):
            change = _interval(mapping(difference).get(name), _change_form(form))
            rows.append({"label": label, "base": cells[0], "tuned": cells[1], "change": change})
    return rows


def group_rows(groups: Any) -> list[dict[str, str]]:
    """A row for each group of rows: how many, and exact match and loss of both models."""
    rows = []
    for name, group in mapping(groups).items():
        base, tuned = (mapping(mapping(group).get(model)) for model in ("base", "tuned"))
        exact = [_interval(scores.get("exact_match"), percent) for scores in (base, tuned)]
        losses = [_interval(scores.get("nll"), short) for scores in (base, tuned)]
        rows.append(
            {
                "name": cut(name, 200),
                "rows": count(mapping(group).get("num_rows")),
                "base": exact[0],
                "tuned": exact[1],
                "base_loss": losses[0],
                "tuned_loss": losses[1],
            }
        )
    return rows[:100]


def _change_form(form: Form) -> Form:
    return lambda value: signed(value, points if form is percent else form)


def signed(value: float | None, form: Form) -> str:
    """A difference, with its sign."""
    text = form(value)
    return f"+{text}" if value is not None and value > 0 else text.replace("-", "−", 1)


def _interval(found: Any, form: Form) -> str:
    parts = mapping(found)
    value, low, high = (number(parts.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return ""
    return form(value) if low is None or high is None else f"{form(value)} ({form(low)} to {form(high)})"


def examples(evaluation: Mapping[str, Any], share: int) -> dict[str, Any]:
    """The first questions with reference and both answers, and how many there are.

    Args:
        evaluation: As read; its examples may be anything.
        share: Runs on the page, among which its room is divided.
    """
    found = evaluation.get("examples")
    found = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    shown = list(_within(map(_example, found[: MOST_EXAMPLES // share or 1]), _MOST_BYTES // share))
    kinds = {kind: sum(kind in each["kinds"] for each in shown) for kind in ("right", "wrong", "gained", "lost")}
    return {"shown": shown, "total": len(found), "kinds": kinds}


def _example(example: dict[str, Any]) -> dict[str, Any]:
    answers = {model: _answer(example.get(model)) for model in ("base", "tuned")}
    before, after = answers["base"]["right"], answers["tuned"]["right"]
    kinds = ["right" if after else "wrong"]
    if before != after:
        kinds.append("gained" if after else "lost")
    texts = {name: cut(example.get(name) or "", _MOST_CHARACTERS) for name in ("row", "group", "question", "reference")}
    return {**texts, **answers, "kinds": kinds}


def _answer(answer: Any) -> dict[str, Any]:
    parts = mapping(answer)
    exact, numeric = parts.get("exact_match") is True, parts.get("numeric_match") is True
    return {
        "text": cut(parts.get("text", ""), _MOST_CHARACTERS),
        "right": exact or numeric,
        "mark": "right" if exact else "numbers right" if numeric else "wrong",
        "f1": percent(number(parts.get("token_f1"))),
        "cut_off": parts.get("stopped") is False,
    }


def sampled(samples: Iterable[Mapping[str, Any]], share: int) -> dict[str, Any]:
    """The first sampled questions, each with its answers in the order of the steps, thinned to a few."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(str(sample.get("row")), []).append(sample)
    kept = list(rows.values())[: max(1, MOST_SAMPLED_ROWS // share)]
    return {"rows": list(_within(map(_sampled_row, kept), _MOST_BYTES // share)), "total": len(rows)}


def _sampled_row(answers: list[Mapping[str, Any]]) -> dict[str, Any]:
    answers = sorted(answers, key=lambda sample: sample["step"])
    last, most = len(answers) - 1, MOST_STEPS
    index = range(len(answers)) if last < most else sorted({round(i * last / (most - 1)) for i in range(most)})
    texts = [{"step": count(answers[i]["step"]), "text": cut(answers[i].get("text", ""), 1000)} for i in index]
    first = answers[0]
    return {
        "question": cut(first.get("question") or "", _MOST_CHARACTERS),
        "reference": cut(first.get("reference") or "", _MOST_CHARACTERS),
        "answers": texts,
        "total": len(answers),
    }


def _within(items: Iterable[dict[str, Any]], room: int) -> Iterator[dict[str, Any]]:
    """As many as fit."""
    for item in items:
        room -= len(str(escape(str(item))).encode("utf-8", "replace"))
        if room < 0:
            return
        yield item
