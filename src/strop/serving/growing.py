"""The text of an answer as its tokens arrive, up to the first stop text."""

from collections.abc import Callable, Sequence

_WINDOW = 16
"""Tokens that are decoded again with each new one, at least. Decoding all of them took 1 ms for each token after 4,000
(SmolLM2), and this takes 0.02 ms, which counts when many answers grow at once."""


class GrowingText:
    """What can be shown of a growing answer: each character once, nothing that a stop text may still swallow.

    Text that may still change is held back: a character whose last bytes are missing, and anything that may be the
    beginning of a stop text.

    Args:
        decode: Token ids -> text.
        stops: Texts that end the answer and are not part of it.

    Attributes:
        stopped: A stop text was found; nothing more is shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        # ids[:begin] are decoded for good, ids[begin:middle] are decoded again as the context of those behind.
        self._begin = self._middle = 0
        self._before = ""  # what of the text of ids[:middle] is not shown yet
        self._shown = 0  # characters of this and of what follows it
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token and return the text that can be shown now, which is often empty."""
        self._ids.append(token)
        new = self._new_text()
        if new.endswith("\ufffd"):
            return ""
        piece = self._show(self._before + new, is_last=False)
        if len(self._ids) - self._middle >= _WINDOW and new.strip():
            self._before = (self._before + new)[self._shown :]
            self._begin, self._middle, self._shown = self._middle, len(self._ids), 0
        return piece

    def rest(self) -> str:
        """The text that was held back, once no more tokens follow."""
        return "" if self.stopped else self._show(self._before + self._new_text(), is_last=True)

    def _new_text(self) -> str:
        """The text of ids[middle:]. Decoded with what comes before, because some decoders drop a space at the start."""
        known = self._decode(self._ids[self._begin : self._middle])
        return self._decode(self._ids[self._begin :])[len(known) :]

    def _show(self, text: str, is_last: bool) -> str:
        found = [place for place in (text.find(stop, self._shown) for stop in self._stops) if place >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) if is_last else len(text) - self._held_back(text)
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _held_back(self, text: str) -> int:
        """Length of the longest suffix of the text that is also the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text) - self._shown), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
