import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.microbatch.order import Order
from strop.recipe import TrainSection


def stream(num_samples: int, batch: int, epochs: float, max_steps: int | None, seed: int = 0) -> list[list[int]]:
    order = Order(num_samples, batch, epochs, max_steps, seed)
    return [order.samples(step).tolist() for step in range(order.num_steps)]


def flat(steps: list[list[int]]) -> list[int]:
    return [index for step in steps for index in step]


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_an_epoch_visits_every_sample_once(num_samples: int, batch: int, seed: int) -> None:
    steps = stream(num_samples, batch, 1.0, None, seed)
    assert sorted(flat(steps)) == list(range(num_samples))
    assert all(len(step) == batch for step in steps[:-1])


def test_epochs_differ_and_each_is_complete() -> None:
    order = flat(stream(100, 8, 3.0, None))
    epochs = [order[:100], order[100:200], order[200:]]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@given(st.integers(1, 300), st.integers(1, 40), st.floats(1e-6, 6.0))
def test_a_run_has_a_step_and_sees_every_sample_equally_often(num_samples: int, batch: int, epochs: float) -> None:
    steps = stream(num_samples, batch, epochs, None)
    assert steps
    assert all(steps)
    seen = np.bincount(flat(steps), minlength=num_samples)
    assert seen.sum() == max(1, round(num_samples * epochs))
    assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(
    ("num_samples", "epochs", "max_steps", "said"),
    [
        (97, 3.0, None, "97 samples, 8 a step: 37 steps, because a step may cross the end of an epoch (transformers' "
                        "Trainer begins a new one there, which makes 39)"),
        (19, 0.02, None, "train.num_train_epochs=0.02 of 19 samples is less than one sample, so one is seen: 1 step"),
        (96, 3.0, None, ""),
        (97, 1.0, None, ""),
        (97, 3.0, 20, ""),
        (19, 0.02, 20, ""),
    ],
)  # fmt: skip
def test_what_epochs_mean_is_said(num_samples: int, epochs: float, max_steps: int | None, said: str) -> None:
    found = list(Order(num_samples, 8, epochs, max_steps, seed=0).explain())
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_half_an_epoch_and_a_fixed_number_of_steps() -> None:
    assert len(flat(stream(100, 8, 0.5, None))) == 50
    assert 0.29 * 100 < 29, "in binary; what is meant is 29 samples"
    assert len(flat(stream(100, 8, 0.29, None))) == 29
    steps = stream(10, 8, 1.0, 5)
    assert [len(step) for step in steps] == [8] * 5
    assert sorted(flat(steps)[:10]) == list(range(10))


def test_the_order_that_a_recipe_asks_for() -> None:
    section = TrainSection(
        per_device_train_batch_size=3, gradient_accumulation_steps=4, num_train_epochs=2.5, max_steps=-1, seed=7
    )
    assert Order.of(section, 100) == Order(100, 12, 2.5, None, 7)
    assert Order.of(section, 100).num_steps == 21
    assert Order.of(section.model_copy(update={"max_steps": 1}), 100) == Order(100, 12, 2.5, 1, 7)


def test_order_depends_on_the_seed_and_nothing_else() -> None:
    assert stream(500, 8, 1.0, None, seed=1) == stream(500, 8, 1.0, None, seed=1)
    assert stream(500, 8, 1.0, None, seed=1) != stream(500, 8, 1.0, None, seed=2)


def test_a_step_is_a_function_of_its_number() -> None:
    whole = stream(2_000_003, 8, 1.0, 40)
    assert Order(2_000_003, 8, 1.0, 40, seed=0).samples(31).tolist() == whole[31]


@pytest.mark.parametrize("n", [64, 1000, 4097])
def test_order_looks_random(n: int) -> None:
    """The rank correlation of position and value is within four standard deviations of 0; for the identity it is 1."""
    for seed in range(20):
        order = Order(n, n, 1.0, None, seed).samples(0)
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / n**0.5
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / n**0.5
    assert np.corrcoef(np.arange(n), np.arange(n))[0, 1] > 4 / n**0.5


@pytest.mark.parametrize(
    ("num_samples", "seed", "wanted"),
    [
        (13, 0, [12, 6, 8, 9, 0, 2, 5, 7, 3, 10, 1, 11, 4, 9, 10, 1, 5, 2, 6, 4, 7, 12, 3, 0, 11, 8]),
        (13, 1, [0, 7, 4, 10, 2, 3, 1, 9, 5, 8, 11, 6, 12]),
        (1, 5, [0, 0]),
        (2_000_003, 0, [1357598, 1502239, 1693571, 661048, 1105888]),
    ],
)
def test_the_order_stays_what_it_was(num_samples: int, seed: int, wanted: list[int]) -> None:
    """A run that one version began and the next resumes sees its rows in the same order: frozen."""
    assert flat(stream(num_samples, 13, 1.0, 2, seed))[: len(wanted)] == wanted
