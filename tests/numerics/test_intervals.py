"""Do 95% intervals hold the truth in 95% of samples? By simulation, with intervals that do not as controls."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from strop.evaluation.intervals import (
    Interval,
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

TRIALS = 2000
Rng = np.random.Generator


def coverage(draw: Callable[[Rng], Interval | None], truth: float) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(TRIALS):
        interval = draw(rng)
        assert interval is not None
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= truth <= interval.high
    return hits / TRIALS


def naive_mean(values: np.ndarray) -> Interval:
    """p +- 1.96 SE, as if each value counted."""
    spread = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean()) - spread, float(values.mean()) + spread, len(values))


@pytest.mark.parametrize(("p", "count"), [(0.5, 32), (0.05, 32), (0.02, 200), (0.97, 100)])
def test_wilson_covers(p: float, count: int) -> None:
    assert coverage(lambda rng: score_interval(rng.random(count) < p), p) > 0.93


def test_the_naive_interval_of_a_rare_event_does_not() -> None:
    assert coverage(lambda rng: naive_mean((rng.random(32) < 0.05).astype(float)), 0.05) < 0.85


def test_wilsons_published_example() -> None:
    # 81 of 263 (Newcombe 1998, Stat. Med. 17, table I): 0.2553 to 0.3662; 0 of 20: 0 to 0.1611
    interval = score_interval([True] * 81 + [False] * 182)
    assert interval is not None
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    none = score_interval([False] * 20)
    assert none is not None
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (8.0, 2.0), (0.3, 0.2)])
@pytest.mark.parametrize("count", [20, 200])
def test_f1_like_means_are_covered_without_waste(a: float, b: float, count: int) -> None:
    truth = a / (a + b)
    assert coverage(lambda rng: score_interval(rng.beta(a, b, count)), truth) > 0.93
    widths = [score_interval(np.random.default_rng(i).beta(a, b, count)) for i in range(50)]
    deviation = math.sqrt(a * b / (a + b) ** 2 / (a + b + 1))
    assert np.mean([w.high - w.low for w in widths if w]) < 1.2 * 2 * 1.96 * deviation / math.sqrt(count)


def row_sums(rng: Rng, count: int, shift: np.ndarray | float = 0.0) -> tuple[RowSums, np.ndarray]:
    """Rows of very different lengths, each with a loss of its own; longer rows are easier."""
    tokens = np.ceil(rng.lognormal(2.5, 0.8, count))
    level = rng.gamma(2.0, 0.5, count) * tokens**-0.2 + shift
    return RowSums(level * tokens, tokens), level


def true_nll() -> float:
    sums, _ = row_sums(np.random.default_rng(99), 2_000_000)
    return sums.nll


@pytest.mark.parametrize("count", [30, 300])
def test_the_loss_is_covered(count: int) -> None:
    truth = true_nll()
    assert coverage(lambda rng: nll_interval(row_sums(rng, count)[0]), truth) > 0.90
    assert coverage(lambda rng: perplexity_interval(row_sums(rng, count)[0]), math.exp(truth)) > 0.90


def test_counting_tokens_instead_of_rows_is_seen() -> None:
    def by_token(rng: Rng) -> Interval:
        sums, level = row_sums(rng, 100)
        return naive_mean(np.repeat(level, sums.tokens_N.astype(int)))

    assert coverage(by_token, true_nll()) < 0.6


def test_paired_differences_are_covered_and_narrow() -> None:
    def both(rng: Rng) -> tuple[RowSums, RowSums]:
        base, level = row_sums(rng, 100)
        return RowSums((0.8 * level + 0.1 * rng.random(100)) * base.tokens_N, base.tokens_N), base

    truth = 0.05 - 0.2 * true_nll()
    assert coverage(lambda rng: nll_difference(*both(rng)), truth) > 0.92
    ppl = math.exp(0.8 * true_nll() + 0.05) - math.exp(true_nll())
    assert coverage(lambda rng: perplexity_difference(*both(rng)), ppl) > 0.90
    tuned, base = both(np.random.default_rng(5))
    paired, alone = nll_difference(tuned, base), nll_interval(base)
    assert paired
    assert alone
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


@pytest.mark.parametrize(("both_right", "gained", "lost", "count"), [(0.6, 0.2, 0.05, 32), (0.9, 0.05, 0.05, 60)])
def test_paired_proportions_are_covered(both_right: float, gained: float, lost: float, count: int) -> None:
    def draw(rng: Rng) -> Interval | None:
        u = rng.random(count)
        base = (u < both_right) | (u > 1 - lost)
        return score_difference((u < both_right + gained), base)

    assert coverage(draw, gained - lost) > 0.93


def test_unpaired_rows_are_seen() -> None:
    """Control: a difference of the wrong pairs is as wide as that of two samples."""
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.5
    tuned = base | (rng.random(400) < 0.1)
    paired, shuffled = score_difference(tuned, base), score_difference(rng.permutation(tuned), base)
    assert paired
    assert shuffled
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_too_few_rows_have_no_interval() -> None:
    one, two = RowSums(np.array([3.0]), np.array([2.0])), RowSums(np.array([3.0, 1.0]), np.array([2.0, 2.0]))
    assert None not in (nll_interval(two), nll_difference(two, two), perplexity_difference(two, two))
    assert (
        nll_interval(one)
        is perplexity_interval(one)
        is nll_difference(one, one)
        is perplexity_difference(one, one)
        is None
    )
    assert score_interval([]) is score_difference([], []) is None
    assert score_interval([True]) is not None


def test_a_huge_loss_has_a_perplexity() -> None:
    interval = perplexity_interval(RowSums(np.array([9000.0, 1.0]), np.array([2.0, 2.0])))
    assert interval is not None
    assert math.isfinite(interval.high)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (99, 1.98422)]
)
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert t_quantile(freedom) == pytest.approx(quantile, rel=3e-3)


T = {29: 2.0452296, 30: 2.0422725, 39: 2.0226909, 40: 2.0210754, 199: 1.9719565}
"""Student's t, two-sided 95%, by degrees of freedom."""


@pytest.mark.parametrize("freedom", T)
def test_students_quantiles_to_six_digits(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(T[freedom], rel=1e-6)


def ratio_by_jackknife(sums: RowSums) -> float:
    """Standard error of the loss of a token, by leaving out each row in turn: another method, the same limit."""
    count = len(sums.nll_N)
    without = (sums.nll_N.sum() - sums.nll_N) / (sums.tokens_N.sum() - sums.tokens_N)
    return math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))


def ratio_by_cochran(sums: RowSums) -> float:
    """Cochran 1977, (6.13), term by term."""
    count, ratio = len(sums.nll_N), sums.nll_N.sum() / sums.tokens_N.sum()
    squares = sum((y - ratio * x) ** 2 for y, x in zip(sums.nll_N, sums.tokens_N, strict=True))
    return math.sqrt(squares / (count - 1) / count) / (sums.tokens_N.sum() / count)


@pytest.mark.parametrize("count", [40, 200])
def test_the_losses_interval_is_cochrans(count: int) -> None:
    sums, _ = row_sums(np.random.default_rng(3), count)
    interval = nll_interval(sums)
    assert interval is not None
    assert interval.count == count
    assert interval.value == pytest.approx(sums.nll_N.sum() / sums.tokens_N.sum(), rel=1e-12)
    for end in (interval.value - interval.low, interval.high - interval.value):
        assert end == pytest.approx(T[count - 1] * ratio_by_cochran(sums), rel=1e-6)
    assert ratio_by_cochran(sums) == pytest.approx(ratio_by_jackknife(sums), rel=0.1)


def test_a_row_moves_the_loss_as_much_as_its_tokens() -> None:
    """Rows of 1 and of 99 tokens; without the tokens' weights the two short rows would make the spread."""
    sums = RowSums(np.array([5.0, 0.0, *[99.0] * 28]), np.array([1.0, 1.0, *[99.0] * 28]))
    influence = sums.influence()
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    for row, moved in enumerate(influence):
        weight = np.ones(30)
        weight[row] += 1e-6
        nll = float((weight * sums.nll_N).sum() / (weight * sums.tokens_N).sum())
        assert (nll - sums.nll) / 1e-6 * 30 == pytest.approx(moved, rel=1e-4, abs=1e-6)


def test_the_differences_interval_is_of_paired_rows() -> None:
    rng = np.random.default_rng(7)
    base, level = row_sums(rng, 40)
    tuned = RowSums((0.7 * level + 0.2 * rng.random(40)) * base.tokens_N, base.tokens_N)
    # The tokens are the same, so a difference of losses is the loss of the difference, row by row.
    alike = RowSums(tuned.nll_N - base.nll_N, base.tokens_N)
    interval = nll_difference(tuned, base)
    assert interval is not None
    assert interval.value == pytest.approx(tuned.nll - base.nll)
    assert interval.high - interval.value == pytest.approx(T[39] * ratio_by_cochran(alike), rel=1e-6)
    perplexities = perplexity_difference(tuned, base)
    assert perplexities is not None
    assert perplexities.value == pytest.approx(math.exp(tuned.nll) - math.exp(base.nll))
    slopes = RowSums(
        math.exp(tuned.nll) * (tuned.nll_N - tuned.nll * tuned.tokens_N)
        - math.exp(base.nll) * (base.nll_N - base.nll * base.tokens_N),
        base.tokens_N,
    )
    assert perplexities.high - perplexities.value == pytest.approx(T[39] * ratio_by_cochran(slopes), rel=1e-6)


def test_perplexity_is_exp_of_the_losses_ends() -> None:
    sums, _ = row_sums(np.random.default_rng(3), 40)
    loss, got = nll_interval(sums), perplexity_interval(sums)
    assert loss
    assert got
    assert [got.value, got.low, got.high] == pytest.approx([math.exp(x) for x in (loss.value, loss.low, loss.high)])
    assert got.count == 40
    assert perplexity(710.0) == math.exp(700)


def wilson(p: float, n: float, z: float = 1.959963985) -> tuple[float, float]:
    """Wilson 1927: the two p0 at which |p - p0| = z sqrt(p0 (1 - p0) / n)."""
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_a_mean_of_scores_counts_as_many_rows_as_vary_as_little() -> None:
    """Korn and Graubard: n p (1 - p) / s^2 (z / t)^2 rows that answer yes or no."""
    scores = np.random.default_rng(2).beta(3, 2, 40)
    scores[:5], scores[5:9] = 0.0, 1.0  # some are like a yes or a no
    mean, variance = float(scores.mean()), float(scores.var(ddof=1))
    effective = mean * (1 - mean) / (variance / 40) * (1.959963985 / T[39]) ** 2
    interval = score_interval(scores)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(wilson(mean, effective), rel=1e-6)
    assert interval.count == 40


@pytest.mark.parametrize("right", [0, 1, 20, 39, 40])
def test_yes_or_no_counts_every_row(right: int) -> None:
    interval = score_interval([True] * right + [False] * (40 - right))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(wilson(right / 40, 40), rel=1e-6, abs=1e-12)


def test_paired_scores_have_agresti_and_mins_interval() -> None:
    """Their (8): Wald's for the table with half a pseudo-row added to each of its four cells."""
    both, gained, lost, neither = 20.5, 9.5, 3.5, 9.5
    total = both + gained + lost + neither
    centre = (gained - lost) / total
    spread = 1.959963985 * math.sqrt((gained + lost) / total - centre**2) / math.sqrt(total)
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
