"""Which tokens may be drawn, how often, and by whose numbers."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from strop.evaluation.sampling import Sampling, choose, nucleus

THREE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.1, [1]), (0.5, [1]), (0.51, [1, 2]), (0.8, [1, 2]), (0.81, [0, 1, 2]), (1.0, [0, 1, 2])]
)
def test_a_nucleus_is_the_smallest_set_of_that_mass(top_p: float, kept: list[int]) -> None:
    [row] = nucleus(THREE[None], torch.tensor([[top_p]], dtype=torch.float64))
    assert row.nonzero().flatten().tolist() == kept
    assert torch.equal(row[kept], THREE[kept])


def test_each_row_has_its_own_nucleus() -> None:
    rows = nucleus(THREE.expand(3, 3), torch.tensor([[1.0], [0.4], [0.6]], dtype=torch.float64))
    assert [row.count_nonzero().item() for row in rows] == [3, 1, 2]


LOGITS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.1]])
SAMPLINGS = [Sampling(0.5), Sampling(), Sampling(2.0), Sampling(1.0, 0.3)]


def generators(seed: int) -> list[torch.Generator]:
    return [Sampling(seed=seed).generator(row) for row in range(len(LOGITS))]


def test_each_row_is_drawn_from_its_own_temperature_and_nucleus() -> None:
    drawing, times = generators(0), 3000
    chosen = [choose(LOGITS, SAMPLINGS, drawing) for _ in range(times)]
    cold, greedy, hot, narrow = zip(*chosen, strict=True)
    assert set(greedy) == {0}
    assert set(narrow) == {2}
    for drawn, logits, temperature in ((cold, LOGITS[0], 0.5), (hot, LOGITS[2], 2.0)):
        assert shares(drawn) == pytest.approx((logits / temperature).softmax(-1).tolist(), abs=0.03)


def shares(drawn: tuple[int | Exception, ...]) -> list[float]:
    counts = Counter(drawn)
    return [counts[token] / len(drawn) for token in range(3)]


def test_a_row_draws_with_its_own_generator() -> None:
    flat, hot = torch.zeros(3, 1000), [Sampling(1.0)] * 3

    def drawn(rows: list[int], seed: int = 0) -> list[int | Exception]:
        return choose(flat[: len(rows)], hot[: len(rows)], [Sampling(seed=seed).generator(row) for row in rows])

    assert drawn([0, 1, 2]) == drawn([2, 1, 0])[::-1]
    assert len(set(drawn([0, 1, 2]))) == 3, "rows draw apart"
    assert drawn([0, 1, 2]) != drawn([0, 1, 2], seed=1), "and so do seeds"


def test_a_row_that_allows_no_choice_is_its_own_fault() -> None:
    logits: Tensor = torch.stack((torch.full((3,), float("nan")), LOGITS[0]))
    broken, sound = choose(logits, [Sampling(1.0)] * 2, generators(0)[:2])
    assert isinstance(broken, RuntimeError)
    assert sound in (0, 1, 2)
