"""How far apart two models' distributions over the next token are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Distance:
    """Over all positions of all answers.

    Attributes:
        kl: Mean KL divergence from the trained model's distribution, nats.
        top1: Share of positions with the same likeliest token.
        logits: |difference| / |logits|, each position's mean taken off.
    """

    kl: float
    top1: float
    logits: float


def distance(wanted: Sequence[NDArray[np.float32]], told: Sequence[NDArray[np.float32]]) -> Distance:
    """Of two models' logits, (positions, V) for each answer."""
    want, got = (np.concatenate(logits).astype(np.float64) for logits in (wanted, told))
    p, q = _log_softmax(want), _log_softmax(got)
    centred = want - want.mean(1, keepdims=True)
    error = np.linalg.norm(centred - (got - got.mean(1, keepdims=True)))
    return Distance(
        kl=float((np.exp(p) * (p - q)).sum(1).mean()),
        top1=float((want.argmax(1) == got.argmax(1)).mean()),
        logits=float(error / np.linalg.norm(centred)),
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return out
