"""Says so when the loss does not fall, or rises again. The run goes on, but nobody should hear it at its end only."""

from collections.abc import Iterable
from statistics import fmean

_WINDOW = 25
"""Steps whose losses are averaged: a batch of eight short answers scatters by a fifth of its loss."""

_PATIENCE = 4
"""Windows after the first without a fall."""

_FALL, _RISE = 0.93, 1.5


class LossWatch:
    """Reads the loss of every step; each of its two warnings comes once.

    Losses are compared by windows of steps. Against the first window, which warmup makes a fair start, the loss should
    have fallen by 7% in any of the next four. A window half as high again as the best one is a divergence.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window: list[float] = []
        self._means: list[float] = []
        self._said: set[str] = set()
        for loss in losses:
            self.see(loss)

    def see(self, loss: float) -> str | None:
        """Take in the loss of the next step; a warning if there is a new reason for one."""
        self._window.append(loss)
        if len(self._window) < _WINDOW:
            return None
        self._means.append(fmean(self._window))
        self._window = []
        first, *rest = self._means
        if rest and rest[-1] > _RISE * min(self._means) and self._is_new("risen"):
            return (
                f"the loss has risen from {min(self._means):.3g} to {rest[-1]:.3g} (means of {_WINDOW} steps): lower "
                "train.learning_rate, or give it more train.warmup_steps"
            )
        if len(rest) == _PATIENCE and min(rest) > _FALL * first and self._is_new("level"):
            return (
                f"the loss has hardly fallen in {_WINDOW * len(self._means)} steps ({first:.3g}, now {rest[-1]:.3g}): "
                "is anything to be learned from these rows? `strop check` shows what is learned. If it is, try another "
                "train.learning_rate"
            )
        return None

    def _is_new(self, what: str) -> bool:
        new = what not in self._said
        self._said.add(what)
        return new
