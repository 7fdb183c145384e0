import numpy as np

from strop.data.store import Sample
from strop.evaluation.score import split_question


def test_the_question_is_everything_before_the_last_answer() -> None:
    # two answers, 7 8 and 5 6 9; 9 is a stop token
    sample = Sample(np.array([1, 7, 8, 2, 3, 5, 6, 9], np.int32), np.array([0, 1, 1, 0, 0, 1, 1, 1], bool))
    question, answer = split_question(sample, frozenset({9}))
    assert question == [1, 7, 8, 2, 3]
    assert answer == [5, 6]
