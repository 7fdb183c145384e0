"""How right generated answers are, and the same model with and without its adapter side by side."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from strop.data.store import Sample, SampleStore
from strop.evaluation.generate import Answer, generate
from strop.evaluation.loss import HeldOutLoss, held_out_loss
from strop.model.lora import LoraAdapter

_NUMBER = re.compile(r"[-+]?\d[\d,\u202f\u00a0]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on the held-out rows.

    Attributes:
        nll: Mean -log p of the reference answers' tokens, in nats.
        perplexity: exp(nll).
        exact_match: Share of answers equal to the reference, white space folded.
        numeric_match: Share of the rows whose reference holds numbers in which the answer holds the same numbers in
            the same order; None if no reference has any.
        stopped: Share of answers that ended with a stop token instead of running into the limit.
    """

    nll: float
    perplexity: float
    exact_match: float | None
    numeric_match: float | None
    stopped: float | None


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out question and what both models made of it."""

    row: str
    question: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base beside tuned on the same held-out rows."""

    num_rows: int
    num_loss_tokens: int
    num_generated: int
    base: Scores
    tuned: Scores
    examples: list[Example]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as evaluation.json holds it."""
        return asdict(self)


def evaluate(
    adapter: LoraAdapter,
    store: SampleStore,
    questions: Sequence[str],
    decode: Callable[[Sequence[int]], str],
    stop_ids: frozenset[int],
    max_tokens: int,
    max_new_tokens: int,
) -> Evaluation:
    """Score the base model and the tuned one on every row's loss and on the first rows' generated answers.

    Args:
        adapter: Attached to its decoder, holding the tuned weights.
        store: Held-out samples with only answers learned.
        questions: What the first rows ask, in their own words; so many answers each model generates.
        decode: Token ids -> text, special tokens dropped.
        stop_ids: Tokens that end an answer.
        max_tokens: Token budget of a microbatch for the loss.
        max_new_tokens: Longest answer.
    """
    pairs = [split_question(store[i], stop_ids) for i in range(len(questions))]
    prompts = [prompt for prompt, _ in pairs]
    references = [decode(answer).strip() for _, answer in pairs]
    losses, texts, scores = {}, {}, {}
    for name, enabled in (("base", False), ("tuned", True)):
        adapter.enable(enabled)
        losses[name] = held_out_loss(adapter.decoder, store, max_tokens)
        answers = generate(adapter.decoder, prompts, stop_ids, max_new_tokens)
        texts[name] = [decode(answer.ids).strip() for answer in answers]
        scores[name] = _score(losses[name], answers, texts[name], references)
    examples = [
        Example(str(store.origin(i)), question, references[i], texts["base"][i], texts["tuned"][i])
        for i, question in enumerate(questions)
    ]
    count = losses["tuned"].num_loss_tokens
    return Evaluation(len(store), count, len(prompts), scores["base"], scores["tuned"], examples)


def split_question(sample: Sample, stop_ids: frozenset[int]) -> tuple[list[int], list[int]]:
    """A sample's last answer without its stop tokens, and everything before it."""
    learned = np.flatnonzero(sample.learned)
    breaks = np.flatnonzero(np.diff(learned) > 1)
    first = int(learned[breaks[-1] + 1] if len(breaks) else learned[0])
    answer = [int(token) for token in sample.input_ids[first : learned[-1] + 1] if int(token) not in stop_ids]
    return sample.input_ids[:first].tolist(), answer


def exact_match(answer: str, reference: str) -> bool:
    """Equal once white space is folded."""
    return answer.split() == reference.split()


def numbers(text: str) -> list[float]:
    """The numbers in a text in order, thousands separators dropped."""
    return [float(re.sub(r"[,\u202f\u00a0]", "", match)) for match in _NUMBER.findall(text)]


def _score(loss: HeldOutLoss, answers: list[Answer], texts: list[str], references: list[str]) -> Scores:
    pairs = list(zip(texts, references, strict=True))
    with_numbers = [(text, reference) for text, reference in pairs if numbers(reference)]
    return Scores(
        nll=loss.nll,
        perplexity=loss.perplexity,
        exact_match=_share([exact_match(*pair) for pair in pairs]),
        numeric_match=_share([numbers(text) == numbers(reference) for text, reference in with_numbers]),
        stopped=_share([answer.stopped for answer in answers]),
    )


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
