"""The same model with and without its adapter, compared on rows that it has not seen."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strop.data.store import Sample, SampleStore
from strop.evaluation.generate import GeneratedAnswer, generate
from strop.evaluation.intervals import (
    Interval,
    RowSums,
    nll_difference,
    nll_interval,
    perplexity_difference,
    perplexity_interval,
    score_difference,
    score_interval,
)
from strop.evaluation.loss import row_losses
from strop.evaluation.matching import exact_match, numeric_match, token_f1
from strop.model.lora import LoraAdapter

Scores = Mapping[str, Interval | None]
"""By metric: nll (mean -log p of the reference answers' tokens, nats), perplexity, and of the generated answers
exact_match, numeric_match, token_f1 and stopped (by a stop token instead of the limit). None if no row has it."""

_OF_ANSWERS = ("exact_match", "numeric_match", "token_f1", "stopped")


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """How answers are generated and judged.

    Attributes:
        max_new_tokens: Longest answer.
        numeric_tolerance: Relative; see `matching.numeric_match`.
    """

    max_new_tokens: int = 96
    numeric_tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A held-out row to be answered.

    Attributes:
        index: Its place in the store.
        text: What the user asks, in the row's own words.
        prompt: Token ids of everything before the reference answer.
        reference: The right answer.
    """

    index: int
    text: str
    prompt: list[int]
    reference: str


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """What one model answered and how right that is; `matching` defines the metrics."""

    text: str
    exact_match: bool
    numeric_match: bool | None
    token_f1: float
    stopped: bool


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A held-out question and both models' answers.

    Attributes:
        row: Its file and line.
        group: The row's group, if rows have groups.
        question: What the user asks, in the row's own words.
        reference: The right answer.
        base: The base model's answer.
        tuned: The tuned model's answer.
    """

    row: str
    group: str | None
    question: str
    reference: str
    base: JudgedAnswer
    tuned: JudgedAnswer


@dataclass(frozen=True, slots=True)
class Group:
    """Both models' scores on the rows of one group."""

    num_rows: int
    base: Scores
    tuned: Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base beside tuned on the same held-out rows.

    Attributes:
        num_rows: Held-out rows; all of them count in the loss.
        num_loss_tokens: Tokens of their answers.
        num_generated: Rows that were answered.
        settings: How they were answered and judged.
        base: The base model's scores.
        tuned: The tuned model's.
        difference: Tuned minus base, row by row.
        groups: The same scores for each group of rows; empty where there are none.
        examples: Every answer.
    """

    num_rows: int
    num_loss_tokens: int
    num_generated: int
    settings: ScoreSettings
    base: Scores
    tuned: Scores
    difference: Scores
    groups: Mapping[str, Group]
    examples: list[AnswerPair]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as stored in evaluation.json."""
        return asdict(self)


def evaluate(
    adapter: LoraAdapter,
    store: SampleStore,
    questions: Sequence[HeldOutQuestion],
    decode: Callable[[Sequence[int]], str],
    stop_ids: frozenset[int],
    max_tokens: int,
    settings: ScoreSettings,
    groups: Sequence[str] | None = None,
) -> Evaluation:
    """Score the base model and the tuned one on every row's loss and on some rows' generated answers.

    Args:
        adapter: Attached to its decoder, holding the tuned weights.
        store: Held-out samples with only answers learned.
        questions: The rows to be answered.
        decode: Token ids -> text, special tokens dropped.
        stop_ids: Tokens that end an answer.
        max_tokens: Token budget of a microbatch for the loss.
        settings: How answers are generated and judged.
        groups: The group of each of the store's rows, if they have any.
    """
    sums: dict[str, RowSums] = {}
    judged: dict[str, list[JudgedAnswer]] = {}
    for name, enabled in (("base", False), ("tuned", True)):
        adapter.enable(enabled)
        sums[name] = row_losses(adapter.decoder, store, max_tokens)
        answers = generate(adapter.decoder, [q.prompt for q in questions], stop_ids, settings.max_new_tokens)
        judged[name] = [
            _judge(answer, decode(answer.ids).strip(), question.reference, settings.numeric_tolerance)
            for question, answer in zip(questions, answers, strict=True)
        ]
    group_N, asked = np.array(groups or [""] * len(store)), np.array([q.index for q in questions], np.int64)

    def scores(name: str, rows_N: NDArray[np.bool_]) -> Scores:
        return _scores(sums[name].of(rows_N), _picked(judged[name], rows_N[asked]))

    everyone = np.ones(len(store), np.bool_)
    examples = [
        AnswerPair(str(store.origin(q.index)), groups[q.index] if groups else None, q.text, q.reference, base, tuned)
        for q, base, tuned in zip(questions, judged["base"], judged["tuned"], strict=True)
    ]
    return Evaluation(
        num_rows=len(store),
        num_loss_tokens=int(sums["base"].tokens_N.sum()),
        num_generated=len(questions),
        settings=settings,
        base=scores("base", everyone),
        tuned=scores("tuned", everyone),
        difference=_differences(sums, judged),
        groups={
            name: Group(count, scores("base", group_N == name), scores("tuned", group_N == name))
            for name, count in sorted(Counter(groups or ()).items())
        },
        examples=examples,
    )


def split_question(sample: Sample, stop_ids: frozenset[int]) -> tuple[list[int], list[int]]:
    """Everything before a sample's last answer, and that answer without its stop tokens."""
    learned = np.flatnonzero(sample.learned)
    breaks = np.flatnonzero(np.diff(learned) > 1)
    first = int(learned[breaks[-1] + 1] if len(breaks) else learned[0])
    answer = [int(token) for token in sample.input_ids[first : learned[-1] + 1] if int(token) not in stop_ids]
    return sample.input_ids[:first].tolist(), answer


def _judge(answer: GeneratedAnswer, text: str, reference: str, tolerance: float) -> JudgedAnswer:
    return JudgedAnswer(
        text=text,
        exact_match=exact_match(text, reference),
        numeric_match=numeric_match(text, reference, tolerance),
        token_f1=token_f1(text, reference),
        stopped=answer.stopped,
    )


def _scores(sums: RowSums, judged: Sequence[JudgedAnswer]) -> Scores:
    losses = {"nll": nll_interval(sums), "perplexity": perplexity_interval(sums)}
    return losses | {metric: score_interval(_values(judged, metric)) for metric in _OF_ANSWERS}


def _differences(sums: Mapping[str, RowSums], judged: Mapping[str, list[JudgedAnswer]]) -> Scores:
    pairs = (sums["tuned"], sums["base"])
    losses = {"nll": nll_difference(*pairs), "perplexity": perplexity_difference(*pairs)}
    return losses | {
        metric: score_difference(_values(judged["tuned"], metric), _values(judged["base"], metric))
        for metric in _OF_ANSWERS
    }


def _values(judged: Sequence[JudgedAnswer], metric: str) -> list[float]:
    """The metric for every answer that has one.

    The references decide which do, so both models are scored on the same rows.
    """
    values = [getattr(answer, metric) for answer in judged]
    return [float(value) for value in values if value is not None]


def _picked(judged: Sequence[JudgedAnswer], mask: NDArray[np.bool_]) -> list[JudgedAnswer]:
    return [answer for answer, wanted in zip(judged, mask, strict=True) if wanted]
