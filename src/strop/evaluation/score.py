"""The same model with and without its adapter, compared on rows that it has not seen."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from strop.data.store import Sample, SampleStore
from strop.evaluation.generate import GeneratedAnswer, generate
from strop.evaluation.held_out_loss import row_losses
from strop.evaluation.intervals import (
    RowSums,
    nll_difference,
    nll_interval,
    perplexity_difference,
    perplexity_interval,
    score_difference,
    score_interval,
)
from strop.evaluation.numbers import EXACT, numbers
from strop.evaluation.result import METRICS, AnswerPair, Evaluation, Group, JudgedAnswer, Scores, ScoreSettings
from strop.model.lora import LoraAdapter
from strop.readable import counted

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal after normalising white space."""
    return answer.split() == reference.split()


def numeric_match(answer: str, reference: str, tolerance: float) -> bool | None:
    """Whether the answer has exactly the reference's numbers, in the same order.

    Args:
        answer: The generated answer.
        reference: The right answer.
        tolerance: Relative: a number is right if it is off by at most `tolerance` times the reference's; 0 asks for
            equal numbers, however they are written (`1,670` and `1670.0`; see `strop.evaluation.numbers`).

    Returns:
        None if the reference has no number.
    """
    wanted, found = numbers(reference), numbers(answer)
    if not wanted:
        return None
    return len(found) == len(wanted) and all(_is_close(a, b, tolerance) for a, b in zip(found, wanted, strict=True))


def _is_close(found: Decimal, wanted: Decimal, tolerance: float) -> bool:
    allowed = EXACT.multiply(Decimal(str(tolerance)), abs(wanted))
    return found == wanted or EXACT.compare(EXACT.abs(EXACT.subtract(found, wanted)), allowed) <= 0


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 (Rajpurkar et al. 2016): the harmonic mean of the precision and recall of the answer's words.

    Words are compared as SQuAD's evaluation script does: lower case, without ASCII punctuation and without a, an, the.
    If one side has no words left, the score is 1 if the other has none either, else 0.
    """
    found, wanted = _words(answer), _words(reference)
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


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


def evaluate(
    adapter: LoraAdapter,
    store: SampleStore,
    questions: Sequence[HeldOutQuestion],
    decode: Callable[[Sequence[int]], str],
    stop_ids: frozenset[int],
    max_tokens: int,
    settings: ScoreSettings,
    groups: Sequence[str] | None = None,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
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
        waiting: Gives the context of what takes long, named by its argument.
    """
    sums: dict[str, RowSums] = {}
    judged: dict[str, list[JudgedAnswer]] = {}
    for name, enabled in (("base", False), ("tuned", True)):
        adapter.enable(enabled)
        with waiting(f"{name} model: the loss of {counted(len(store), 'held-out row')}"):
            sums[name] = row_losses(adapter.decoder, store, max_tokens)
        with waiting(f"{name} model: answering {counted(len(questions), 'held-out row')}"):
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
    return losses | {metric: score_interval(_values(judged, metric)) for metric in _of_answers()}


def _differences(sums: Mapping[str, RowSums], judged: Mapping[str, list[JudgedAnswer]]) -> Scores:
    pairs = (sums["tuned"], sums["base"])
    losses = {"nll": nll_difference(*pairs), "perplexity": perplexity_difference(*pairs)}
    return losses | {
        metric: score_difference(_values(judged["tuned"], metric), _values(judged["base"], metric))
        for metric in _of_answers()
    }


def _of_answers() -> list[str]:
    return [key for key, metric in METRICS.items() if metric.of_answers]


def _values(judged: Sequence[JudgedAnswer], metric: str) -> list[float]:
    """The metric for every answer that has one.

    The references decide which do, so both models are scored on the same rows.
    """
    values = [getattr(answer, metric) for answer in judged]
    return [float(value) for value in values if value is not None]


def _picked(judged: Sequence[JudgedAnswer], mask: NDArray[np.bool_]) -> list[JudgedAnswer]:
    return [answer for answer, wanted in zip(judged, mask, strict=True) if wanted]
