"""Inputs made from a corpus by edits, as a fuzzer makes them, drawn by hypothesis so that what fails is made small."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from soaking import MINUTES, rounds

CORPUS = Path(__file__).parents[1] / "faults" / "corpus"
_AT_ONCE = 5
"""Times what is tried here, before the clock is looked at again."""


def seeds(kind: str) -> list[Path]:
    """The kept inputs of a kind: examples of each form that it has, and what was once found to fail."""
    return sorted(path for path in (CORPUS / kind).iterdir() if path.name != "README.md")


@st.composite
def edited(draw: st.DrawFn, texts: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the texts with some edits: bits, bytes, words of the format, parts gone, doubled or of another text."""
    data = bytearray(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 1, 2, 8, 64, 1024)))
        match draw(st.sampled_from(("bit", "byte", "word", "cut", "double", "splice", "end", "value"))):
            case "bit" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "word":
                data[at:at] = draw(st.sampled_from(words))
            case "value":
                data[at : at + length] = draw(st.sampled_from(words))
            case "cut":
                del data[at : at + length]
            case "double":
                data[at:at] = data[at : at + length]
            case "splice":
                other = draw(st.sampled_from(texts))
                start = draw(st.integers(0, len(other)))
                data[at : at + length] = other[start : start + length]
            case "end":
                del data[at:]
    return bytes(data)


def fuzz(check: Callable[[Any], None], inputs: st.SearchStrategy[Any], few: int) -> None:
    """Try `few` inputs that are always the same; in `make fuzz`, others until the time is up.

    Raises:
        Whatever `check` raises, for the smallest input found that makes it.
    """
    for number in rounds(1):
        tried = settings(
            max_examples=_AT_ONCE * few if MINUTES else few,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        seed(number)(tried(given(inputs)(_printed(check))))()


def _printed(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(found: Any) -> None:
        try:
            check(found)
        except BaseException as error:
            error.add_note(f"the input: {found!r}")
            raise

    return checked
