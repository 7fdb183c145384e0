"""What is shown of a growing answer: each character once, nothing that a stop text may still swallow."""

from hypothesis import given
from hypothesis import strategies as st

from strop.serving.growing import GrowingText


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def written(text: str, *stops: str) -> tuple[list[str], bool]:
    growing, pieces = GrowingText(decode, stops), []
    for byte in text.encode():
        pieces.append(growing.add(byte))
        if growing.stopped:
            break
    pieces.append(growing.rest())
    return [piece for piece in pieces if piece], growing.stopped


def test_text_comes_as_it_grows() -> None:
    assert written("abc") == (["a", "b", "c"], False)


def test_half_a_character_waits_for_its_other_bytes_and_is_not_lost_at_the_end() -> None:
    assert written("a é €") == (["a", " ", "é", " ", "€"], False)
    growing = GrowingText(decode, ())
    assert [growing.add(byte) for byte in "€".encode()[:2]] == ["", ""]
    assert growing.rest() == "\ufffd"


def test_a_stop_text_and_what_follows_is_never_shown() -> None:
    assert written("one\n\ntwo", "\n\n") == (["o", "n", "e"], True)
    assert written("one\ntwo", "\n\n") == (["o", "n", "e", "\nt", "w", "o"], False)
    assert written("abcab", "abd") == (["abc", "ab"], False)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_it_ends_where_the_first_stop_text_begins(text: str, stops: list[str]) -> None:
    pieces, stopped = written(text, *stops)
    # The stop text that is complete first ends the answer; of two complete at once, the longer began earlier.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)
    assert stopped == bool(ends)
