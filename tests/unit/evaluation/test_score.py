import numpy as np
import pytest

from strop.data.store import Sample
from strop.evaluation.score import exact_match, numbers, split_question


def sample(ids: list[int], learned: list[int]) -> Sample:
    return Sample(np.array(ids, np.int32), np.array(learned, bool))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The population was 1,234,567 in 2024.", [1234567.0, 2024.0]),
        ("rose by -3.5 % to 12.", [-3.5, 12.0]),
        ("1\u202f234 and 1\u00a0234", [1234.0, 1234.0]),
        ("no figures", []),
        ("12.5.", [12.5]),
    ],
)
def test_numbers(text: str, found: list[float]) -> None:
    assert numbers(text) == found


def test_exact_match_folds_white_space_only() -> None:
    assert exact_match(" a  b\n", "a b")
    assert not exact_match("a b.", "a b")
    assert not exact_match("A b", "a b")


def test_the_question_is_everything_before_the_last_answer() -> None:
    # two answers, 7 8 and 5 6 9; 9 is a stop token
    question, answer = split_question(sample([1, 7, 8, 2, 3, 5, 6, 9], [0, 1, 1, 0, 0, 1, 1, 1]), frozenset({9}))
    assert question == [1, 7, 8, 2, 3]
    assert answer == [5, 6]
