"""Each interval is its published formula, written out here with tabulated quantiles, leave-one-out sums and binomials.

That they cover what they should is in numerics/test_intervals.py.
"""

import math

import numpy as np
import pytest

from strop.evaluation.intervals import (
    RowSums,
    nll_difference,
    nll_interval,
    perplexity,
    perplexity_difference,
    perplexity_interval,
    score_difference,
    score_interval,
    t_quantile,
)

T = {29: 2.0452296, 30: 2.0422725, 39: 2.0226909, 40: 2.0210754, 199: 1.9719565}
"""Student's t, two-sided 95%, by degrees of freedom."""


@pytest.mark.parametrize("freedom", T)
def test_students_quantiles_to_six_digits(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(T[freedom], rel=1e-6)


def jackknife(values: np.ndarray) -> float:
    """Standard error from what is found when each row in turn is left out."""
    return math.sqrt((len(values) - 1) / len(values) * float(((values - values.mean()) ** 2).sum()))


def without_each(sums: RowSums) -> np.ndarray:
    return (sums.nll_N.sum() - sums.nll_N) / (sums.tokens_N.sum() - sums.tokens_N)


def sums_of_alike(count: int, tokens: float, seed: int = 3) -> RowSums:
    """Rows of as many tokens each, so that a spread over them has count - 1 degrees of freedom."""
    return RowSums(np.random.default_rng(seed).gamma(2.0, 0.5, count) * tokens, np.full(count, tokens))


@pytest.mark.parametrize("count", [40, 200])
def test_the_losses_interval_is_the_jackknifes(count: int) -> None:
    sums = sums_of_alike(count, 7.0)
    interval = nll_interval(sums)
    assert interval is not None
    assert (interval.count, interval.value) == (count, pytest.approx(sums.nll_N.sum() / sums.tokens_N.sum()))
    spread = T[count - 1] * jackknife(without_each(sums))
    assert interval.value - interval.low == pytest.approx(spread, rel=1e-6)
    assert math.log(interval.high / interval.value) == pytest.approx(spread / interval.value, rel=1e-6)


def test_longer_rows_count_for_as_many_tokens_as_they_have() -> None:
    """Rows of 1 and of 99 tokens; without the tokens' weights the two short rows would make the spread."""
    sums = RowSums(np.array([5.0, 0.0, *[99.0] * 28]), np.array([1.0, 1.0, *[99.0] * 28]))
    assert sums.influence() == pytest.approx(29 * (sums.nll - without_each(sums)))
    interval = nll_interval(sums)
    assert interval is not None
    freedom = 2774.0**2 / (2 + 28 * 99.0**2) - 1
    assert interval.value - interval.low == pytest.approx(t_quantile(freedom) * jackknife(without_each(sums)), rel=1e-9)


def test_the_differences_interval_is_of_paired_rows() -> None:
    base = sums_of_alike(40, 7.0)
    tuned = RowSums(0.7 * base.nll_N + np.random.default_rng(7).random(40), base.tokens_N)
    interval, perplexities = nll_difference(tuned, base), perplexity_difference(tuned, base)
    assert interval is not None
    assert perplexities is not None
    assert interval.value == pytest.approx(tuned.nll - base.nll)
    spread = T[39] * jackknife(without_each(tuned) - without_each(base))
    assert (interval.value - interval.low, interval.high - interval.value) == pytest.approx((spread, spread), rel=1e-6)
    slopes = math.exp(tuned.nll) * without_each(tuned) - math.exp(base.nll) * without_each(base)
    assert perplexities.value == pytest.approx(math.exp(tuned.nll) - math.exp(base.nll))
    assert perplexities.high - perplexities.value == pytest.approx(T[39] * jackknife(slopes), rel=1e-6)


def test_perplexity_is_exp_of_the_losses_ends() -> None:
    sums = sums_of_alike(40, 7.0)
    loss, got = nll_interval(sums), perplexity_interval(sums)
    assert loss
    assert got
    assert [got.value, got.low, got.high] == pytest.approx([math.exp(x) for x in (loss.value, loss.low, loss.high)])
    assert got.count == 40
    assert perplexity(710.0) == math.exp(700)


def beta_below(x: float, a: float, b: float) -> float:
    """The beta distribution's mass below x, by summing its density over a fine grid."""
    at = (np.arange(200_000) + 0.5) / 200_000 * x
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return float(np.exp(constant + (a - 1) * np.log(at) + (b - 1) * np.log1p(-at)).mean() * x)


def test_a_mean_of_scores_counts_as_many_rows_as_vary_as_little() -> None:
    """Korn and Graubard: n p (1 - p) / s^2 (z / t)^2 rows that answer yes or no."""
    scores = np.random.default_rng(2).beta(3, 2, 40)
    scores[:5], scores[5:9] = 0.0, 1.0  # some are like a yes or a no
    mean, variance = float(scores.mean()), float(scores.var(ddof=1))
    effective = mean * (1 - mean) / (variance / 40) * (1.959963985 / T[39]) ** 2
    interval = score_interval(scores)
    assert interval is not None
    right, wrong = mean * effective, (1 - mean) * effective
    assert beta_below(interval.low, right, wrong + 1) == pytest.approx(0.025, rel=1e-5)
    assert beta_below(interval.high, right + 1, wrong) == pytest.approx(0.975, rel=1e-5)
    assert interval.count == 40


@pytest.mark.parametrize("right", [0, 1, 20, 39, 40])
def test_yes_or_no_counts_every_row(right: int) -> None:
    """Clopper and Pearson: at each end, what was found or more extreme has a chance of 2.5%."""
    interval = score_interval([True] * right + [False] * (40 - right))
    assert interval is not None

    def chance(of: range, p: float) -> float:
        return sum(math.comb(40, k) * p**k * (1 - p) ** (40 - k) for k in of)

    assert interval.low == 0 if right == 0 else chance(range(right, 41), interval.low) == pytest.approx(0.025)
    assert interval.high == 1 if right == 40 else chance(range(right + 1), interval.high) == pytest.approx(0.025)


def test_paired_scores_have_agresti_and_mins_interval() -> None:
    """Their (8): Wald's for the table with half a pseudo-row added to each of its four cells; t for z."""
    both, gained, lost, neither = 20.5, 9.5, 3.5, 9.5
    total = both + gained + lost + neither
    centre = (gained - lost) / total
    spread = T[40] * math.sqrt((gained + lost) / total - centre**2) / math.sqrt(total)
    tuned = [1] * 20 + [1] * 9 + [0] * 3 + [0] * 9
    base = [1] * 20 + [0] * 9 + [1] * 3 + [0] * 9
    interval = score_difference(tuned, base)
    assert interval is not None
    assert interval.value == pytest.approx(6 / 41)
    assert (interval.low, interval.high) == pytest.approx((centre - spread, centre + spread), rel=1e-6)
    assert interval.count == 41


@pytest.mark.parametrize(("tuned", "base", "end"), [(1, 0, "high"), (0, 1, "low")])
def test_a_difference_stays_within_one_and_holds_its_value(tuned: int, base: int, end: str) -> None:
    for count in (1, 2, 60):
        interval = score_difference([tuned] * count, [base] * count)
        assert interval is not None
        assert interval.value == getattr(interval, end) == tuned - base
        assert -1 <= interval.low < interval.high <= 1
