"""How far a run is between steps, what follows from that, and whether its loss falls; the same for every engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from strop.errors import BudgetReached, Interrupted
from strop.recipe import TrainSection


@dataclass
class Progress:
    """What the loop has to remember between steps, beside the tensors; a checkpoint's JSON.

    Attributes:
        step: Updates made.
        seconds: Time spent training, over all attempts.
        num_tokens: Tokens of the samples so far.
        evaluated_step: The step after which the held-out rows were last evaluated.
        best_loss: Lowest held-out loss.
        best_step: Where that was.
        evals_without_gain: Evaluations since the last that was better by the recipe's threshold.
        stopped_early: Early stopping ended the run.
    """

    step: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    evaluated_step: int = -1
    best_loss: float | None = None
    best_step: int = 0
    evals_without_gain: int = 0
    stopped_early: bool = False

    def judge(self, loss: float, section: TrainSection) -> bool:
        """Take in the held-out loss after this step; True if it is the lowest so far."""
        self.evaluated_step = self.step
        gain = float("inf") if self.best_loss is None else self.best_loss - loss
        self.evals_without_gain = 0 if gain > section.early_stopping_threshold else self.evals_without_gain + 1
        if gain > 0:
            self.best_loss, self.best_step = loss, self.step
        patience = section.early_stopping_patience
        self.stopped_early = patience is not None and self.evals_without_gain >= patience
        return gain > 0

    def evaluation_is_due(self, section: TrainSection, num_steps: int) -> bool:
        """After this step, unless it has been done; an interruption may have cut it off."""
        if self.evaluated_step == self.step:
            return False
        if self.step == 0:
            return section.eval_on_start
        return self.step == num_steps or is_due(self.step, section.eval_steps)

    def told(self, stop: Interrupted | BudgetReached, num_steps: int) -> Interrupted | BudgetReached:
        """The same error, saying how far the run has come."""
        done = f"step {self.step} of {num_steps}"
        return type(stop)(f"{stop}; {done} is saved" if self.step else f"{stop} before step 1")


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps, or never for 0, happens after this one."""
    return every > 0 and step % every == 0


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
