"""The tree of shared prefixes, in handmade cases with one letter per token."""

import numpy as np
import pytest

from strop.microbatch import tree as prefix
from strop.microbatch.tree import Tree, fit, grow, sort_by_prefix


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def tree(*texts: str, long_from: int | None = None) -> tuple[list[str], Tree]:
    order, shared = sort_by_prefix([ids(text) for text in texts], long_from)
    ordered = [texts[i] for i in order]
    return ordered, grow([len(text) for text in ordered], shared)


def nodes(*texts: str, long_from: int | None = None) -> list[tuple[str, int]]:
    """Each node's tokens and parent."""
    ordered, grown = tree(*texts, long_from=long_from)
    packed = np.empty(grown.num_tokens, "<U1")
    packed[grown.places()] = list("".join(ordered))
    parts = ["".join(packed[a : a + n]) for a, n in zip(grown.starts, grown.lengths, strict=True)]
    for last, text in zip(grown.last_nodes, ordered, strict=True):
        assert "".join(parts[node] for node in grown.paths[last]) == text
    assert sum(grown.costs()) == grown.num_tokens
    return list(zip(parts, grown.parents, strict=True))


HEAD = "below is an instruction: "
SUB = "about the sixth commune "


def test_a_common_header_is_one_node() -> None:
    assert nodes(HEAD + "x", HEAD + "yy", HEAD + "z") == [(HEAD, -1), ("x", 0), ("yy", 0), ("z", 0)]


def test_nothing_in_common() -> None:
    assert nodes("b", "aa", "c") == [("aa", -1), ("b", -1), ("c", -1)]
    assert nodes("alone") == [("alone", -1)]


def test_prefixes_nest() -> None:
    got = nodes(HEAD + "x", HEAD + SUB + "1", HEAD + SUB + "2", HEAD + "y")
    assert got == [(HEAD, -1), (SUB, 0), ("1", 1), ("2", 1), ("x", 0), ("y", 0)]


def test_positions_go_on_below_nested_prefixes() -> None:
    _, grown = tree(HEAD + "x", HEAD + SUB + "1", HEAD + SUB + "22", HEAD + "y")
    head, sub = len(HEAD), len(SUB)
    assert grown.depths == (0, head, head + sub, head + sub, head, head)
    below = [head + sub, head + sub, head + sub + 1, head, head]
    assert grown.positions().tolist() == [*range(head + sub), *below]
    longest = head + sub + 2
    assert grown.sample_lengths == (longest, longest, longest - 1, longest, head + 1, head + 1)
    assert grown.ends == (
        grown.num_tokens,
        head + sub + 3,
        head + sub + 1,
        head + sub + 3,
        *[grown.num_tokens - 1],
        grown.num_tokens,
    )


def test_several_prefixes() -> None:
    got = nodes(HEAD + "1", SUB + "1", HEAD + "2", "zzz", SUB + "2")
    assert got == [(SUB, -1), ("1", 0), ("2", 0), (HEAD, -1), ("1", 3), ("2", 3), ("zzz", -1)]


def test_one_sample_is_the_beginning_of_others() -> None:
    ordered, grown = tree(HEAD + "b", HEAD, HEAD + "a")
    assert nodes(HEAD + "b", HEAD, HEAD + "a") == [(HEAD, -1), ("a", 0), ("b", 0)]
    assert ordered[0] == HEAD
    assert grown.last_nodes == (0, 1, 2)
    assert grown.sample_lengths == (len(HEAD) + 1,) * 3


def test_identical_samples_are_one() -> None:
    assert nodes(HEAD, HEAD, HEAD) == [(HEAD, -1)]
    assert nodes(HEAD + "a", HEAD + "a", HEAD + "b") == [(HEAD, -1), ("a", 0), ("a", 0), ("b", 0)]


@pytest.mark.parametrize(
    ("head", "count", "is_shared"),
    [(16, 2, True), (15, 2, False), (8, 3, True), (7, 3, False), (4, 5, True), (3, 30, False)],
)
def test_a_node_has_to_be_worth_it(head: int, count: int, is_shared: bool) -> None:
    got = nodes(*("h" * head + chr(65 + i) for i in range(count)))
    assert len(got) == count + is_shared


def test_a_prefix_not_worth_a_node_is_repeated_in_the_nodes_below() -> None:
    """Eight tokens that two subtrees share save too little for a node, so they lengthen the nodes below."""
    got = nodes("h" * 8 + "a" * 10 + "1", "h" * 8 + "a" * 10 + "2", "h" * 8 + "b" * 10 + "1", "h" * 8 + "b" * 10 + "2")
    assert got == [("h" * 8 + "a" * 10, -1), ("1", 0), ("2", 0), ("h" * 8 + "b" * 10, -1), ("1", 3), ("2", 3)]


def test_long_samples_share_only_with_long_ones() -> None:
    short, long = HEAD + "x", HEAD + "x" * 20
    assert nodes(short, HEAD + "y", long, HEAD + "y" * 20, long_from=30) == [
        *[(HEAD, -1), ("x", 0), ("y", 0)],
        *[(HEAD, -1), ("x" * 20, 3), ("y" * 20, 3)],
    ]
    _, grown = tree(short, long, long_from=30)
    assert grown.parents == (-1, -1)
    assert grown.sample_lengths == (len(short), len(long))


def test_a_sample_as_long_as_the_border_is_short() -> None:
    at_border = HEAD + "xxxxx"
    assert len(at_border) == 30
    assert nodes(HEAD + "y", at_border, long_from=30) == [(HEAD, -1), ("xxxxx", 0), ("y", 0)]
    assert [parent for _, parent in nodes(HEAD + "y", at_border + "x", long_from=30)] == [-1, -1]


@pytest.mark.parametrize(("budget", "starts"), [(9, [0, 1, 2, 3]), (10, [0, 2]), (14, [0, 2]), (15, [0, 2]), (20, [0])])
def test_a_run_may_be_filled_to_its_last_token(budget: int, starts: list[int]) -> None:
    """Four samples of five tokens that share nothing; as few runs as possible, and as even."""
    assert [start for start, _ in fit([5] * 4, [0] * 4, budget)] == starts


def test_further_samples_share_nothing() -> None:
    _, grown = tree(HEAD + "x", HEAD + "y")
    more = grown.with_samples([7, 2])
    assert more.lengths == (*grown.lengths, 7, 2)
    assert more.parents == (-1, 0, 0, -1, -1)
    assert more.last_nodes == (1, 2, 3, 4)
    assert more.sample_lengths[-2:] == (7, 2)
    assert more.positions()[-9:].tolist() == [*range(7), 0, 1]
    assert more.ends[-2:] == (more.num_tokens - 2, more.num_tokens)


def test_runs_keep_the_budget_and_are_about_equally_full() -> None:
    texts = [f"{HEAD}{i:02}" for i in range(40)]
    order, shared = sort_by_prefix([ids(text) for text in texts], None)
    lengths = [len(texts[i]) for i in order]
    whole = grow(lengths, shared).num_tokens
    runs = list(fit(lengths, shared, whole // 2 + 2 * len(HEAD)))
    assert [start for start, _ in runs] == [0, 20]
    assert [run.num_tokens for _, run in runs] == [len(HEAD) + 40] * 2
    assert [start for start, _ in fit(lengths, shared, 1)] == list(range(40))


def test_a_run_whose_tree_outgrows_the_estimate_is_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that four samples share is worth a node; in each half of them it is not, and so costs more."""
    monkeypatch.setattr(prefix, "_MIN_SAVED_TOKENS", 20)
    texts = ["h" * 10 + c * 5 for c in "abcd"]
    _, shared = sort_by_prefix([ids(text) for text in texts], None)
    runs = list(fit([15] * 4, shared, 20))
    assert grow([15] * 4, shared).num_tokens == 30
    assert [(start, run.num_tokens) for start, run in runs] == [(0, 15), (1, 15), (2, 15), (3, 15)]
