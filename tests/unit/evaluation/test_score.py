"""Which answers and losses become which scores: a base and a tuned model whose answers are known."""

from typing import Any

import numpy as np
import pytest

from strop.data.examples import Origin
from strop.data.store import Sample
from strop.evaluation import score
from strop.evaluation.generate import GeneratedAnswer
from strop.evaluation.intervals import RowSums
from strop.evaluation.result import Evaluation, ScoreSettings
from strop.evaluation.score import HeldOutQuestion, evaluate, split_question


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_the_question_is_everything_before_the_last_answer(gap: int) -> None:
    # two answers, 7 8 and 5 6 9, with `gap` tokens of a question between them; 9 is a stop token
    ids = [1, 7, 8, *range(20, 20 + gap), 5, 6, 9]
    sample = Sample(np.array(ids, np.int32), np.array([0, 1, 1, *[0] * gap, 1, 1, 1], bool))
    question, answer = split_question(sample, frozenset({9}))
    assert question == ids[:-3]
    assert answer == [5, 6]


def test_a_single_answer_has_all_before_it_as_its_question() -> None:
    sample = Sample(np.array([1, 4, 5, 9, 3], np.int32), np.array([0, 0, 1, 1, 0], bool))
    assert split_question(sample, frozenset({9})) == ([1, 4], [5])


def test_of_three_answers_the_last_is_asked() -> None:
    sample = Sample(np.array([1, 7, 9, 4, 8, 9, 3, 5, 9], np.int32), np.array([0, 1, 1, 0, 1, 1, 0, 1, 1], bool))
    assert split_question(sample, frozenset({9})) == ([1, 7, 9, 4, 8, 9, 3], [5])


ANSWERS = {False: [" 1 ", "7", "b c"], True: ["1", "2", "a b"]}
"""Base, tuned; the references are 1, 2 and `a b`, which has no number."""
NLL = {False: [8.0, 6.0, 2.0, 4.0], True: [2.0, 3.0, 1.0, 4.0]}
TOKENS = [4.0, 3.0, 1.0, 2.0]


class Model:
    """Stands for an adapter and its decoder."""

    def __init__(self) -> None:
        self.decoder, self.tuned = self, True

    def enable(self, enabled: bool) -> None:
        self.tuned = enabled


class Store:
    def __len__(self) -> int:
        return 4

    def origin(self, index: int) -> Origin:
        return Origin("rows.jsonl", index + 1)


def found(monkeypatch: pytest.MonkeyPatch, groups: list[str] | None = None) -> Evaluation:
    """Four rows, of which 0, 1 and 3 are answered."""

    def generate(decoder: Model, prompts: list[list[int]], stops: frozenset[int], limit: int) -> list[GeneratedAnswer]:
        assert (prompts, stops, limit) == ([[10], [11], [13]], frozenset({9}), 5)
        return [GeneratedAnswer([int(decoder.tuned), i], stopped=i != 2 or decoder.tuned) for i in range(3)]

    def row_losses(decoder: Model, store: Store, max_tokens: int) -> RowSums:
        assert max_tokens == 64
        return RowSums(np.array(NLL[decoder.tuned]), np.array(TOKENS))

    monkeypatch.setattr(score, "generate", generate)
    monkeypatch.setattr(score, "row_losses", row_losses)
    references = ["1", "2", "a b"]
    questions = [
        HeldOutQuestion(row, f"q{row}", [10 + row], text) for row, text in zip((0, 1, 3), references, strict=True)
    ]
    decode = lambda ids: ANSWERS[bool(ids[0])][ids[1]]  # noqa: E731
    parts: Any = (Model(), Store(), questions, decode, frozenset({9}), 64, ScoreSettings(5))
    return evaluate(*parts, groups)


def values(scores: Any) -> dict[str, tuple[float, int] | None]:
    return {name: one and (round(one.value, 6), one.count) for name, one in scores.items()}


def test_base_and_tuned_are_not_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch)
    assert (result.num_rows, result.num_loss_tokens, result.num_generated) == (4, 10, 3)
    base, tuned, difference = values(result.base), values(result.tuned), values(result.difference)
    assert (base["nll"], tuned["nll"], difference["nll"]) == ((2.0, 4), (1.0, 4), (-1.0, 4))
    assert (base["exact_match"], tuned["exact_match"]) == ((0.333333, 3), (1.0, 3))
    assert difference["exact_match"] == (0.666667, 3)
    assert (base["numeric_match"], tuned["numeric_match"]) == ((0.5, 2), (1.0, 2)), "`a b` has no number"
    assert difference["numeric_match"] == (0.5, 2)
    assert (base["token_f1"], tuned["token_f1"], difference["token_f1"]) == ((0.555556, 3), (1.0, 3), (0.444444, 3))
    assert (base["stopped"], tuned["stopped"], difference["stopped"]) == ((0.666667, 3), (1.0, 3), (0.333333, 3))
    assert result.groups == {}


def test_examples_hold_what_each_model_said(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = found(monkeypatch).examples
    assert (first.row, first.question, first.reference, first.group) == ("rows.jsonl:1", "q0", "1", None)
    assert third.row == "rows.jsonl:4"
    assert [example.base.text for example in (first, second, third)] == ["1", "7", "b c"], "without blanks around it"
    assert [example.tuned.text for example in (first, second, third)] == ["1", "2", "a b"]
    assert (second.base.exact_match, second.tuned.exact_match) == (False, True)
    assert third.base.numeric_match is None


def test_groups_are_scored_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, ["x", "y", "x", "y"])
    assert list(result.groups) == ["x", "y"]
    x, y = result.groups["x"], result.groups["y"]
    assert (x.num_rows, y.num_rows) == (2, 2)
    assert (values(x.base)["nll"], values(x.tuned)["nll"]) == ((2.0, 2), (0.6, 2))
    assert (values(y.base)["nll"], values(y.tuned)["nll"]) == ((2.0, 2), (1.4, 2))
    assert (values(x.base)["exact_match"], values(y.base)["exact_match"]) == ((1.0, 1), (0.0, 2))
    assert (values(x.tuned)["exact_match"], values(y.tuned)["exact_match"]) == ((1.0, 1), (1.0, 2))
    assert [example.group for example in result.examples] == ["x", "y", "y"]
