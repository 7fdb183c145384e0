"""How messages about a recipe quote a value, and what a wrong word may have meant."""

import difflib
from collections.abc import Iterable
from typing import Any

from strop.secrets import without_secrets


def show(value: Any) -> str:
    """A value on one line, and shortened."""
    text = without_secrets(repr(value))  # before it is cut: a part of a secret has no shape
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar, if any is similar enough."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6) or difflib.get_close_matches(
        word.rpartition(".")[2], words, n=1, cutoff=0.6
    )
    return close[0] if close else None


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    close = closest(word, known)
    return f"; did you mean {close}?" if close else ""
