"""Tokens of a growing answer -> the text that can be shown already."""

from collections.abc import Callable, Sequence


class GrowingText:
    """An answer's text while its tokens come in, up to the first of some stop texts.

    What may still change is held back: a character whose last bytes are to come, and what may be the beginning of a
    stop text.

    Args:
        decode: Token ids -> text.
        stops: Texts that end the answer and are no part of it.

    Attributes:
        stopped: A stop text was found; nothing more is shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        self._shown = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token; returns what can be shown now, often nothing."""
        self._ids.append(token)
        text = self._decode(self._ids)
        return "" if text.endswith("\ufffd") else self._show(text, is_last=False)

    def rest(self) -> str:
        """What was held back, once no token follows."""
        return "" if self.stopped else self._show(self._decode(self._ids), is_last=True)

    def _show(self, text: str, is_last: bool) -> str:
        found = [place for place in (text.find(stop, self._shown) for stop in self._stops) if place >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) if is_last else len(text) - self._held_back(text)
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _held_back(self, text: str) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text) - self._shown), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
