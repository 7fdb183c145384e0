"""95% intervals: what another sample of held-out rows of the same size would plausibly have shown.

Rows are the unit of sampling; the tokens of one row are not independent of each other, so nothing here counts tokens.
The methods, of those whose coverage stands up to few rows (tests/numerics/test_intervals.py has the simulation):

- proportions (exact match, numeric match, stopped): Clopper and Pearson 1934 (Biometrika 26), exact, so at least 95%
  whatever the truth; Wilson's covers 83% of samples where about one row in 6 samples differs from the rest. Means of
  numbers in [0, 1] (token F1): the same with an effective count, n p (1 - p) / s^2 (z / t)^2 (Korn and Graubard 1998,
  Surv. Methodol. 24): as many yes-or-no rows as would vary as little, and fewer if s is itself estimated from few.
- loss, a ratio of sums over rows: the jackknife (Miller 1974, Biometrika 61), which is the standard error clustered by
  row that Miller 2024 (arXiv 2411.00640) asks for, not made small by rows so long that the ratio follows them.
  Student's t with as many degrees of freedom as rows of one length would give. Losses are skewed to the right, so the
  upper end is that of log loss.
- differences, tuned minus base: paired by row, because both models answer the same rows. Scores in [0, 1]: the adjusted
  Wald interval of Agresti and Min 2005 (Stat. Med. 24), with two pseudo-rows added, half a row in favour of each
  model, and Student's t. Loss and perplexity: the jackknife of the difference.
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
    """Clopper and Pearson's interval for the mean of numbers in [0, 1], or of bools; None without rows."""
    scores_N = np.asarray(scores, np.float64)
    count = len(scores_N)
    if not count:
        return None
    mean, effective = float(scores_N.mean()), float(count)
    if not np.isin(scores_N, (0.0, 1.0)).all() and (variance := float(scores_N.var(ddof=1)) if count > 1 else 0.0):
        effective *= mean * (1 - mean) / variance * (_Z / t_quantile(count - 1)) ** 2
    right, wrong = mean * effective, (1 - mean) * effective
    low = beta_quantile((1 - _LEVEL) / 2, right, wrong + 1) if mean > 0 else 0.0
    high = beta_quantile((1 + _LEVEL) / 2, right + 1, wrong) if mean < 1 else 1.0
    return Interval(mean, min(mean, low), max(mean, high), count)


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
    spread = t_quantile(max(1, count - 1)) * math.sqrt(variance / (count + 2))
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
        """How much each row moves `nll`, (N,): N - 1 times what leaving it out would change (the jackknife)."""
        of_others_N = (self.tokens_N.sum() - self.tokens_N) / (len(self.tokens_N) - 1)
        moved: NDArray[np.float64] = (self.nll_N - self.nll * self.tokens_N) / of_others_N
        return moved

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a spread over the rows, at least 1: N - 1 if all have as many tokens, else fewer."""
        return max(1.0, float(self.tokens_N.sum() ** 2 / (self.tokens_N @ self.tokens_N)) - 1)


def nll_interval(sums: RowSums) -> Interval | None:
    """The interval for the mean loss of a token; None with fewer than two rows, which have no spread."""
    if len(sums.nll_N) < 2:
        return None
    value, spread = sums.nll, _spread(sums.influence(), sums.freedom)
    high = value * math.exp(min(spread / value, _MAX_EXPONENT)) if value else 0.0
    return Interval(value, max(0.0, value - spread), high, len(sums.nll_N))


def perplexity_interval(sums: RowSums) -> Interval | None:
    """The loss's interval, with exp taken of the value and both ends."""
    loss = nll_interval(sums)
    return loss and Interval(perplexity(loss.value), perplexity(loss.low), perplexity(loss.high), loss.count)


def nll_difference(tuned: RowSums, base: RowSums) -> Interval | None:
    """The interval for the loss of tuned - base, on the same rows."""
    return _around(tuned.nll - base.nll, tuned, base, 1.0, 1.0)


def perplexity_difference(tuned: RowSums, base: RowSums) -> Interval | None:
    """The interval for the perplexity of tuned - base, on the same rows; the slope of exp(x) is exp(x)."""
    high, low = perplexity(tuned.nll), perplexity(base.nll)
    return _around(high - low, tuned, base, high, low)


def perplexity(nll: float) -> float:
    """exp(nll)."""
    return math.exp(min(nll, _MAX_EXPONENT))


def _around(value: float, tuned: RowSums, base: RowSums, slope: float, base_slope: float) -> Interval | None:
    if len(tuned.nll_N) < 2:
        return None
    spread = _spread(slope * tuned.influence() - base_slope * base.influence(), tuned.freedom)
    return Interval(value, value - spread, value + spread, len(tuned.nll_N))


def _spread(influence_N: NDArray[np.float64], freedom: float) -> float:
    return t_quantile(freedom) * float(influence_N.std(ddof=1)) / math.sqrt(len(influence_N))


def t_quantile(freedom: float) -> float:
    """Two-sided 95% quantile of Student's t, for any degrees of freedom of at least 1."""
    x = beta_quantile(1 - _LEVEL, freedom / 2, 0.5)
    return math.sqrt(freedom * (1 - x) / x)


def beta_quantile(share: float, a: float, b: float) -> float:
    """Where the beta distribution has a share of its mass below; by Newton's method, or halving where that strays."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(100):
        off = _beta_below(x, a, b) - share
        low, high = (x, high) if off < 0 else (low, x)
        density = math.exp(_log_beta_term(x, a, b)) / (x * (1 - x))
        guess = x - off / density if density else low
        before, x = x, guess if low < guess < high else (low + high) / 2
        if abs(x - before) <= 1e-12 * x or x == 1:
            break
    return x


def _beta_below(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by a continued fraction (DLMF 8.17.22) where that converges fast."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_below(1 - x, b, a)
    return math.exp(_log_beta_term(x, a, b)) / a * _beta_fraction(x, a, b)


def _log_beta_term(x: float, a: float, b: float) -> float:
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)


def _beta_fraction(x: float, a: float, b: float) -> float:
    upper, lower = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction, change, m = lower, 0.0, 0
    while abs(change - 1) > 1e-14:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            lower, upper = 1 / (1 + term * lower), 1 + term / upper
            change = lower * upper
            fraction *= change
    return fraction
