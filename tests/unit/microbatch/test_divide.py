import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.microbatch.divide import divide, shared_within
from strop.microbatch.tree import grow, sort_by_prefix


def computed(part: list[int], lengths: list[int], shared: list[int]) -> int:
    return grow([lengths[i] for i in part], shared_within(part, shared)).num_tokens if part else 0


def drawn(seed: int, count: int, header: int, longest: int) -> tuple[list[int], list[int]]:
    random = np.random.default_rng(seed)
    rows = [
        np.concatenate([np.full(header, 1, np.int32), random.integers(2, 99, random.integers(1, longest))]).astype(
            np.int32
        )
        for _ in range(count)
    ]
    order, shared = sort_by_prefix(rows, None)
    return [len(rows[i]) for i in order], shared


@given(st.integers(0, 999), st.integers(1, 40), st.sampled_from([0, 3, 60]), st.integers(2, 300), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_sample_has_one_rank(seed: int, count: int, header: int, longest: int, ranks: int) -> None:
    parts = divide(*drawn(seed, count, header, longest), ranks)
    assert len(parts) == ranks
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("header", [0, 60])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_no_rank_computes_much_more_than_the_others(header: int, ranks: int) -> None:
    """With sixteen samples a rank the fullest has at most 3% more than the mean, whether or not they share a prefix."""
    lengths, shared = drawn(0, 16 * ranks, header, 300)
    tokens = [computed(part, lengths, shared) for part in divide(lengths, shared, ranks)]
    assert max(tokens) <= 1.03 * sum(tokens) / ranks


def test_samples_behind_one_prefix_stay_together() -> None:
    """Four groups of four samples behind a header of their own, on two ranks: no header is computed twice."""
    rows = [np.array([*([group + 1] * 50), 90 + i, 80 + i], np.int32) for i in range(4) for group in range(4)]
    order, shared = sort_by_prefix(rows, None)
    lengths = [len(rows[i]) for i in order]
    parts = divide(lengths, shared, 2)
    assert [computed(part, lengths, shared) for part in parts] == [2 * (50 + 8)] * 2


def test_long_samples_are_dealt_out_by_length() -> None:
    """Neighbours in the order of their prefixes would be 900 + 800 against 100 + 200."""
    parts = divide([900, 800, 100, 200], [0, 0, 0, 0], 2)
    assert parts == [[0, 2], [1, 3]]


def test_what_is_shared_within_a_part_is_the_least_between() -> None:
    assert shared_within([0, 2, 3], [0, 2, 3, 4]) == [0, 2, 4]
    assert shared_within([], [0, 5]) == []


def test_headers_within_headers_are_cut_where_that_is_best() -> None:
    """Dealing out whole groups would give one rank 64 tokens."""
    lengths, shared = [20, 36, 44, 37, 55], [0, 14, 25, 28, 19]
    assert max(computed(part, lengths, shared) for part in divide(lengths, shared, 3)) == 56
