"""Samples over the limit: what is cut, what a window repeats, and what is said of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.data.long_samples import Fitted, fit
from strop.data.store import STOP_CUT, TRUNCATED, StoreSettings
from strop.data.template import Encoded

BOS, STOP = 1, 2
STOPS = np.array([STOP], np.int32)


def sample(ids: list[int], learned: list[int], turns: int = 0) -> Encoded:
    return Encoded(np.array(ids, np.int32), np.array(learned, bool), turns)


def plain(fitted: Fitted) -> list[tuple[list[int], list[int], int]]:
    return [(one.input_ids.tolist(), one.learned.astype(int).tolist(), flags) for one, flags in fitted.samples]


def fitted(samples: list[Encoded], limit: int, document: bool = False, **settings: object) -> Fitted | str:
    return fit(samples, document, BOS, StoreSettings(limit, **settings), STOPS)  # type: ignore[arg-type]


def test_what_fits_stays_as_it_is() -> None:
    one = fitted([sample([5, 6, STOP], [0, 1, 1])], 3)
    assert isinstance(one, Fitted)
    assert plain(one) == [([5, 6, STOP], [0, 1, 1], 0)]
    assert one.tokens_cut == 0


@pytest.mark.parametrize(
    ("ids", "learned", "flags"),
    [
        ([5, 6, 7, 8, STOP], [0, 1, 1, 1, 1], TRUNCATED | STOP_CUT),
        ([5, 6, 7, 8, STOP], [0, 1, 1, 1, 0], TRUNCATED),  # the stop token was not learned anyway
        ([5, 6, STOP, 8, 9], [0, 1, 1, 1, 1], TRUNCATED),  # it is still there
    ],
)
def test_the_end_is_cut_and_flagged(ids: list[int], learned: list[int], flags: int) -> None:
    one = fitted([sample(ids, learned)], 3)
    assert isinstance(one, Fitted)
    assert plain(one) == [(ids[:3], learned[:3], flags)]
    assert one.tokens_cut == 2


def test_a_row_whose_answers_are_cut_off_whole_counts_them_as_cut() -> None:
    kept, lost = sample([5, 6, STOP], [0, 1, 1], 2), sample([5, 6, STOP, 7, 8, 9], [0, 0, 0, 0, 1, 1], 4)
    one = fitted([kept, lost], 4)
    assert isinstance(one, Fitted)
    assert plain(one) == [([5, 6, STOP], [0, 1, 1], TRUNCATED)]
    assert one.tokens_cut == 2


def test_a_prompt_that_fills_the_limit_says_so() -> None:
    assert fitted([sample([5, 6, 7, 8], [0, 0, 0, 1])], 3) == (
        "no answer token is left: the prompt alone has 3 tokens and max_seq_length is 3"
    )
    assert "no token is learned" in str(fitted([sample([5, 6], [0, 0])], 3))


def test_long_samples_are_dropped_and_short_ones_of_the_row_kept() -> None:
    short, long = sample([5, STOP], [0, 1]), sample([5, 6, 7, STOP], [0, 1, 1, 1])
    one = fitted([short, long], 3, long_samples="drop")
    assert isinstance(one, Fitted)
    assert plain(one) == [([5, STOP], [0, 1], TRUNCATED)]
    assert one.tokens_cut == 4
    assert plain(fitted([long], 3, long_samples="drop")) == []  # type: ignore[arg-type]


def test_of_several_samples_only_the_long_one_is_cut() -> None:
    ends_at_the_limit = sample([5, 6, STOP], [0, 1, 1])
    one = fitted([sample([5, STOP], [0, 1]), ends_at_the_limit, sample([5, 6, 7, STOP], [0, 1, 1, 1])], 3)
    assert isinstance(one, Fitted)
    whole = [([5, STOP], [0, 1], 0), ([5, 6, STOP], [0, 1, 1], 0)]
    assert plain(one) == [*whole, ([5, 6, 7], [0, 1, 1], TRUNCATED | STOP_CUT)]
    assert one.tokens_cut == 1


def test_a_sample_without_anything_to_learn_is_left_out_of_its_row() -> None:
    one = fitted([sample([5, 6], [0, 0]), sample([5, STOP], [0, 1])], 3)
    assert isinstance(one, Fitted)
    assert plain(one) == [([5, STOP], [0, 1], 0)]
    dropped = fitted([sample([5, 6, 7], [0, 0, 1]), sample([5, 6, 7, 8], [0, 0, 0, 1])], 3, long_samples="drop")
    assert isinstance(dropped, Fitted)
    assert plain(dropped) == [([5, 6, 7], [0, 0, 1], TRUNCATED)], "as long as the limit is not too long"


def test_only_documents_are_split() -> None:
    one = fitted([sample([5, 6, 7, 8], [0, 1, 1, 1])], 3, long_samples="split")
    assert isinstance(one, Fitted)
    assert [ids for ids, _, _ in plain(one)] == [[5, 6, 7]]


def test_windows_begin_with_bos_and_repeat_without_learning() -> None:
    ids = [BOS, 10, 11, 12, 13, 14, 15, 16]
    one = fitted([sample(ids, [0] + [1] * 7)], 5, document=True, long_samples="split", long_overlap=2)
    assert isinstance(one, Fitted)
    assert plain(one) == [
        ([BOS, 10, 11, 12, 13], [0, 1, 1, 1, 1], 0),
        ([BOS, 12, 13, 14, 15], [0, 0, 0, 1, 1], 0),
        ([BOS, 14, 15, 16], [0, 0, 0, 1], 0),
    ]
    assert one.tokens_cut == 0


def test_a_window_without_bos_cannot_learn_its_first_token() -> None:
    one = fitted([sample([10, 11, 12, 13, 14], [0, 1, 1, 1, 1])], 2, document=True, long_samples="split")
    assert isinstance(one, Fitted)
    assert plain(one) == [([10, 11], [0, 1], 0), ([12, 13], [0, 1], 0)], "the last one has nothing to learn"


@given(st.integers(2, 60), st.integers(3, 20), st.data(), st.booleans())
def test_every_token_of_a_document_is_learned_once(length: int, limit: int, data: st.DataObject, bos: bool) -> None:
    overlap = data.draw(st.integers(0 if bos else 1, limit - 2))
    ids = [BOS] * bos + list(range(100, 100 + length))
    whole = sample(ids, [0] + [1] * (len(ids) - 1))
    one = fitted([whole], limit, document=True, long_samples="split", long_overlap=overlap)
    assert isinstance(one, Fitted)
    learned = [int(i) for part, _ in one.samples for i in part.input_ids[part.learned]]
    assert learned == ids[1:]
    for part, _ in one.samples:
        assert len(part.input_ids) <= limit
        assert not part.learned[0]
        assert bool(part.input_ids[0] == BOS) == bos
        stretch = part.input_ids[bos:]
        assert (np.diff(stretch) == 1).all()
