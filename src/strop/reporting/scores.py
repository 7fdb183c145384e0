"""How good the answers are: base beside tuned on held-out questions, and the samples of the training."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from markupsafe import escape

from strop.evaluation.result import METRICS, AnswerPair, Evaluation, Interval, JudgedAnswer
from strop.reporting.text import both_ends, count, cut, percent, points, short
from strop.run.records import Sample

MOST_EXAMPLES, MOST_SAMPLED_ROWS, MOST_STEPS = 200, 6, 12
"""Questions with both answers; questions sampled in training; answers to each of those."""

_MOST_CHARACTERS = 3000
"""Of one text."""

_MOST_BYTES = 1_500_000
"""Of all texts of a page as HTML, for each of the two lists: the page has to stay one that a phone opens."""

Form = Callable[[float | None], str]


def score_rows(evaluation: Evaluation | None) -> list[dict[str, str]]:
    """A row for each metric that either model has, each figure with its 95% interval."""
    if evaluation is None:
        return []
    rows = []
    for key, metric in METRICS.items():
        form, change = (percent, points) if metric.is_share else (short, short)
        cells = [_interval(scores.get(key), form) for scores in (evaluation.base, evaluation.tuned)]
        if any(cells):
            difference = _interval(evaluation.difference.get(key), partial(signed, form=change))
            rows.append({"label": metric.heading, "base": cells[0], "tuned": cells[1], "change": difference})
    return rows


def group_rows(evaluation: Evaluation | None) -> list[dict[str, str]]:
    """A row for each group of rows: how many, and exact match and loss of both models."""
    groups = list(evaluation.groups.items())[:100] if evaluation else []
    return [
        {
            "name": cut(name, 200),
            "rows": count(group.num_rows),
            "base": _interval(group.base.get("exact_match"), percent),
            "tuned": _interval(group.tuned.get("exact_match"), percent),
            "base_loss": _interval(group.base.get("nll"), short),
            "tuned_loss": _interval(group.tuned.get("nll"), short),
        }
        for name, group in groups
    ]


def signed(value: float | None, form: Form) -> str:
    """A difference, with its sign."""
    text = form(value)
    return f"+{text}" if value is not None and value > 0 else text.replace("-", "−", 1)


def _interval(found: Interval | None, form: Form) -> str:
    return f"{form(found.value)} ({form(found.low)} to {form(found.high)})" if found else ""


def examples(evaluation: Evaluation | None, share: int) -> dict[str, Any]:
    """The first questions with reference and both answers, and how many there are.

    Args:
        evaluation: As read.
        share: Runs on the page, among which its room is divided.
    """
    found = evaluation.examples if evaluation else []
    shown = list(_within(map(_example, found[: MOST_EXAMPLES // share or 1]), _MOST_BYTES // share))
    kinds = {kind: sum(kind in each["kinds"] for each in shown) for kind in ("right", "wrong", "gained", "lost")}
    return {"shown": shown, "total": len(found), "kinds": kinds}


def _example(example: AnswerPair) -> dict[str, Any]:
    answers = {"base": _answer(example.base), "tuned": _answer(example.tuned)}
    before, after = answers["base"]["right"], answers["tuned"]["right"]
    kinds = ["right" if after else "wrong"]
    if before != after:
        kinds.append("gained" if after else "lost")
    texts = {
        "row": example.row,
        "group": example.group or "",
        "question": example.question,
        "reference": example.reference,
    }
    return {**{name: both_ends(text, _MOST_CHARACTERS) for name, text in texts.items()}, **answers, "kinds": kinds}


def _answer(answer: JudgedAnswer) -> dict[str, Any]:
    return {
        "text": both_ends(answer.text, _MOST_CHARACTERS),
        "right": answer.exact_match or bool(answer.numeric_match),
        "mark": "right" if answer.exact_match else "numbers right" if answer.numeric_match else "wrong",
        "f1": percent(answer.token_f1),
        "cut_off": not answer.stopped,
    }


def sampled(samples: Iterable[Sample], share: int) -> dict[str, Any]:
    """The first sampled questions, each with its answers in the order of the steps, thinned to a few."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.row, []).append(sample)
    kept = list(rows.values())[: max(1, MOST_SAMPLED_ROWS // share)]
    return {"rows": list(_within(map(_sampled_row, kept), _MOST_BYTES // share)), "total": len(rows)}


def _sampled_row(answers: list[Sample]) -> dict[str, Any]:
    answers = sorted(answers, key=lambda sample: sample.step)
    last, most = len(answers) - 1, MOST_STEPS
    index = range(len(answers)) if last < most else sorted({round(i * last / (most - 1)) for i in range(most)})
    texts = [{"step": count(answers[i].step), "text": both_ends(answers[i].text, 1000)} for i in index]
    first = answers[0]
    return {
        "question": both_ends(first.question, _MOST_CHARACTERS),
        "reference": both_ends(first.reference, _MOST_CHARACTERS),
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
