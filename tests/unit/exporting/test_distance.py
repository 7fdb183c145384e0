"""The distances of the export gate beside their definitions, for all logits and for the likeliest tokens alone."""

import numpy as np
import pytest

from strop.exporting.parity.distance import Likeliest, distance

RNG = np.random.default_rng(3)
WANT, GOT = (RNG.normal(size=(6, 9)).astype(np.float32) * 2 for _ in range(2))


def probabilities(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64))
    return wide / wide.sum(1, keepdims=True)


def likeliest(logits: np.ndarray, count: int) -> Likeliest:
    """As a server reports them, but not in the order of their probability."""
    ids = np.argsort(-logits, axis=1)[:, :count][:, ::-1]
    return Likeliest(ids, np.log(np.take_along_axis(probabilities(logits), ids, 1)).astype(np.float32))


def test_all_logits() -> None:
    p, q = probabilities(WANT), probabilities(GOT)
    found = distance([WANT[:4], WANT[4:]], [GOT[:4], GOT[4:]])
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-9)
    assert found.top1 == np.mean(WANT.argmax(1) == GOT.argmax(1))
    centred, other = (x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64) for x in (WANT, GOT))
    assert found.logits == pytest.approx(np.linalg.norm(centred - other) / np.linalg.norm(centred), rel=1e-9)


def test_a_shift_of_all_logits_is_no_distance() -> None:
    found = distance([WANT], [WANT + np.float32(8)])
    assert found.kl < 1e-9
    assert found.logits < 1e-6
    assert found.top1 == 1


def test_the_likeliest_tokens_and_the_rest_as_one() -> None:
    told = likeliest(GOT, 4)
    p, q = (np.take_along_axis(probabilities(x), told.ids, 1) for x in (WANT, GOT))
    p, q = (np.concatenate([x, 1 - x.sum(1, keepdims=True)], 1) for x in (p, q))
    found = distance([WANT], [told])
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert found.kl < distance([WANT], [GOT]).kl, "joining tokens can only make it smaller"
    assert found.top1 == np.mean(WANT.argmax(1) == GOT.argmax(1))


def test_the_same_likeliest_tokens_are_no_distance() -> None:
    found = distance([WANT], [likeliest(WANT, 3)])
    assert (found.top1, found.kl, found.logits) == (1.0, pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
