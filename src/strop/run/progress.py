"""How far a run has come, what is due next, and whether its loss falls; the same for every engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from strop.errors import BudgetReached, Interrupted
from strop.readable import counted
from strop.recipe import TrainSection


@dataclass
class Progress:
    """What the loop has to remember between steps besides the tensors; stored as a checkpoint's JSON.

    Attributes:
        step: Updates made.
        seconds: Time spent training, over all attempts.
        num_tokens: Tokens of the samples so far.
        evaluated_step: The step after which the held-out rows were last evaluated.
        best_loss: Lowest held-out loss.
        best_step: The step with that loss.
        evals_without_gain: Evaluations since the last one that improved by more than the recipe's threshold.
        stopped_early: Whether early stopping ended the run.
    """

    step: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    evaluated_step: int = -1
    best_loss: float | None = None
    best_step: int = 0
    evals_without_gain: int = 0
    stopped_early: bool = False

    def record_eval(self, loss: float, section: TrainSection) -> bool:
        """Record the held-out loss after this step; returns whether it is the lowest so far.

        Step 0 is the base model, which training does not have to beat: as in transformers, it is neither the best nor
        counted for patience.
        """
        self.evaluated_step = self.step
        if self.step == 0:
            return False
        gain = float("inf") if self.best_loss is None else self.best_loss - loss
        self.evals_without_gain = 0 if gain > section.early_stopping_threshold else self.evals_without_gain + 1
        if gain > 0:
            self.best_loss, self.best_step = loss, self.step
        patience = section.early_stopping_patience
        self.stopped_early = patience is not None and self.evals_without_gain >= patience
        return gain > 0

    def evaluation_is_due(self, section: TrainSection, num_steps: int) -> bool:
        """Whether an evaluation is due after this step and was not yet made; an interruption may have cut it off."""
        if self.evaluated_step == self.step:
            return False
        if self.step == 0:
            return section.eval_on_start is not False
        return self.step == num_steps or is_due(self.step, section.eval_steps)

    def added_to(self, stop: Interrupted | BudgetReached, num_steps: int) -> Interrupted | BudgetReached:
        """The same error, with how far the run has come."""
        done = f"step {self.step} of {num_steps}"
        return type(stop)(f"{stop}; {done} is saved" if self.step else f"{stop} before step 1")


def coverage(steps: int, samples_per_step: int, num_samples: int) -> str:
    """What so many steps see of the samples: `12 of 2,844 samples`, or `all 2,844 samples`."""
    seen = steps * samples_per_step
    every = f"all {counted(num_samples, 'sample')}" if num_samples > 1 else counted(num_samples, "sample")
    return f"{seen:,} of {counted(num_samples, 'sample')}" if seen < num_samples else every


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


_WINDOW = 25
"""Steps whose losses are averaged: the loss of a batch of eight short answers scatters by a fifth."""

_PATIENCE = 4
"""Windows after the first in which the loss may fail to fall."""

_FALL, _RISE = 0.93, 1.5


class LossWatch:
    """Watches the loss of every step; gives each of its two warnings at most once.

    It compares averages over windows of steps. In one of the four windows after the first, the loss should be 7% lower
    than in the first; warmup makes that a fair start. A window 50% above the lowest one is a divergence.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._window: list[float] = []
        self._means: list[float] = []
        self._said: set[str] = set()
        for loss in losses:
            self.see(loss)

    def see(self, loss: float) -> str | None:
        """Add the loss of the next step; returns a warning if there is a new reason for one."""
        self._window.append(loss)
        if len(self._window) < _WINDOW:
            return None
        self._means.append(fmean(self._window))
        self._window = []
        first, *rest = self._means
        if rest and rest[-1] > _RISE * min(self._means) and self._is_new("risen"):
            return (
                f"the loss has risen from {min(self._means):.3g} to {rest[-1]:.3g} (means of {_WINDOW} steps): lower "
                "train.learning_rate or raise train.warmup_steps"
            )
        if len(rest) == _PATIENCE and min(rest) > _FALL * first and self._is_new("level"):
            return (
                f"the loss has hardly fallen in {_WINDOW * len(self._means)} steps ({first:.3g}, now {rest[-1]:.3g}): "
                "is there anything to learn in these rows? `strop check` shows which tokens are learned. If there is, "
                "try another train.learning_rate"
            )
        return None

    def _is_new(self, what: str) -> bool:
        new = what not in self._said
        self._said.add(what)
        return new
