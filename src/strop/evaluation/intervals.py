"""95% intervals: what another sample of held-out rows of the same size would plausibly have shown.

Rows are the unit of sampling; the tokens of one row are not independent of each other, so nothing here counts tokens.
The methods:

- proportions (exact match, numeric match, stopped) and means of numbers in [0, 1] (token F1): Wilson's score interval
  (Wilson 1927, JASA 22), which keeps its coverage near 0 and 1, where p +- 2 SE fails (Brown, Cai and DasGupta 2001,
  Stat. Sci. 16). For means the count is the effective one, n p (1 - p) / s^2 (z / t)^2 (Korn and Graubard 1998, Surv.
  Methodol. 24): as many yes-or-no rows as would vary as little, and fewer if s is itself estimated from few.
- loss, a ratio of sums over rows: linearisation (Cochran 1977, Sampling Techniques, ch. 6), which is the standard error
  clustered by row that Miller 2024 (arXiv 2411.00640) asks for; Student's t with n - 1 degrees of freedom.
- differences, tuned minus base: paired by row, because both models answer the same rows. Scores in [0, 1]: the adjusted
  Wald interval of Agresti and Min 2005 (Stat. Med. 24), with two pseudo-rows added, half a row in favour of each
  model. Loss and perplexity: linearisation of the difference.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strop.evaluation.result import Interval

_LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
_MAX_EXPONENT = 700.0
"""Not far above it exp overflows float64, and a perplexity of 10^304 is of no use to a reader."""


def score_interval(scores: ArrayLike) -> Interval | None:
    """Wilson's interval for the mean of numbers in [0, 1], or of bools; None without rows."""
    scores_N = np.asarray(scores, np.float64)
    count = len(scores_N)
    if not count:
        return None
    mean = float(scores_N.mean())
    largest, effective = mean * (1 - mean), float(count)
    if not np.isin(scores_N, (0.0, 1.0)).all() and (variance := float(scores_N.var(ddof=1)) if count > 1 else 0.0):
        effective *= largest / variance * (_Z / t_quantile(count - 1)) ** 2
    centre = (mean + _Z**2 / (2 * effective)) / (1 + _Z**2 / effective)
    spread = _Z / (1 + _Z**2 / effective) * math.sqrt(largest / effective + _Z**2 / (4 * effective**2))
    return Interval(mean, max(0.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread)), count)


def score_difference(tuned: ArrayLike, base: ArrayLike) -> Interval | None:
    """Agresti and Min's interval for the mean of tuned - base, both scores in [0, 1]; None without rows."""
    differences_N = np.asarray(tuned, np.float64) - np.asarray(base, np.float64)
    count = len(differences_N)
    if not count:
        return None
    mean = float(differences_N.mean())
    # Half a pseudo-row each for +1 and -1, one for 0: the sum stays, squares grow by 1, rows by 2.
    centre = float(differences_N.sum()) / (count + 2)
    variance = (float(differences_N @ differences_N) + 1) / (count + 2) - centre**2
    spread = _Z * math.sqrt(variance / (count + 2))
    return Interval(mean, max(-1.0, min(mean, centre - spread)), min(1.0, max(mean, centre + spread)), count)


@dataclass(frozen=True, slots=True)
class RowSums:
    """The sum of -log p over each row's learned tokens, and how many those are; both float64 (N,)."""

    nll_N: NDArray[np.float64]
    tokens_N: NDArray[np.float64]

    @property
    def nll(self) -> float:
        """Mean -log p over all tokens."""
        return float(self.nll_N.sum() / self.tokens_N.sum())

    def of(self, rows: NDArray[np.bool_]) -> "RowSums":
        """The rows that a mask selects."""
        return RowSums(self.nll_N[rows], self.tokens_N[rows])

    def influence(self) -> NDArray[np.float64]:
        """How much each row moves `nll`, (N,): the residuals whose spread is the linearised standard error."""
        residuals: NDArray[np.float64] = (self.nll_N - self.nll * self.tokens_N) / self.tokens_N.mean()
        return residuals


def nll_interval(sums: RowSums) -> Interval | None:
    """The interval for the mean loss of a token; None with fewer than two rows, which have no spread."""
    return _linearised(sums.nll, sums.influence()) if len(sums.nll_N) > 1 else None


def perplexity_interval(sums: RowSums) -> Interval | None:
    """The loss's interval, with exp taken of the value and both ends."""
    loss = nll_interval(sums)
    return loss and Interval(perplexity(loss.value), perplexity(loss.low), perplexity(loss.high), loss.count)


def nll_difference(tuned: RowSums, base: RowSums) -> Interval | None:
    """The interval for the loss of tuned - base, on the same rows."""
    if len(tuned.nll_N) < 2:
        return None
    return _linearised(tuned.nll - base.nll, tuned.influence() - base.influence())


def perplexity_difference(tuned: RowSums, base: RowSums) -> Interval | None:
    """The interval for the perplexity of tuned - base, on the same rows; the slope of exp(x) is exp(x)."""
    if len(tuned.nll_N) < 2:
        return None
    high, low = perplexity(tuned.nll), perplexity(base.nll)
    return _linearised(high - low, high * tuned.influence() - low * base.influence())


def perplexity(nll: float) -> float:
    """exp(nll)."""
    return math.exp(min(nll, _MAX_EXPONENT))


def _linearised(value: float, influence_N: NDArray[np.float64]) -> Interval:
    count = len(influence_N)
    spread = t_quantile(count - 1) * float(influence_N.std(ddof=1)) / math.sqrt(count)
    return Interval(value, value - spread, value + spread, count)


def t_quantile(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t: exact for 1 and 2 degrees of freedom, else to 0.3% or better.

    Source: Abramowitz and Stegun 26.7.5, four terms.
    """
    if freedom == 1:
        return math.tan(math.pi * _LEVEL / 2)
    if freedom == 2:
        return math.sqrt(2 * _LEVEL**2 / (1 - _LEVEL**2))
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
        (79 * _Z**9 + 776 * _Z**7 + 1482 * _Z**5 - 1920 * _Z**3 - 945 * _Z) / 92160,
    )
    return _Z + sum(term / float(freedom**power) for power, term in enumerate(terms, 1))
