import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strop.data.pack import collate, pack
from strop.data.store import Sample


def sample(ids: list[int], learned: list[int]) -> Sample:
    return Sample(np.array(ids, np.int32), np.array(learned, bool))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 120))
def test_every_sample_lands_once_and_budgets_hold(lengths: list[int], budget: int) -> None:
    groups = pack(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)
    assert all(group == sorted(group) for group in groups)


def test_first_fit_decreasing_fills_the_gaps() -> None:
    assert pack([4, 2, 3], 8) == [[0, 2], [1]]
    assert pack([5, 4, 3, 2, 2], 8) == [[0, 2], [1, 3, 4]]


def test_labels_stay_inside_their_sample() -> None:
    batch = collate([sample([5, 6, 7], [0, 1, 1]), sample([8, 9], [1, 1]), sample([4], [1])], [3, 1, 2])
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert batch.lengths == (3, 2, 1)
    # position 0 predicts 6, 1 predicts 7, 3 predicts 9; nothing predicts a first token, 8 and 4 included
    assert batch.learned.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [6, 7, 9]
    assert batch.num_loss_tokens == 3
    assert batch.samples == (3, 1, 2)


def test_unlearned_tokens_are_context_only() -> None:
    batch = collate([sample([5, 6, 7, 8], [0, 0, 1, 0])], [0])
    assert batch.learned.tolist() == [1]
    assert batch.labels.tolist() == [7]
