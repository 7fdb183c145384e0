"""How far apart two models' distributions over the next token are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Distance:
    """Over all positions of all answers.

    Attributes:
        kl: Mean KL divergence from the trained model's distribution, nats. Where only the likeliest tokens are seen,
            all others count as one, which makes it smaller by next to nothing.
        top1: Share of positions with the same likeliest token.
        logits: |difference| / |logits|, each position's mean taken off; None where not all logits are seen.
    """

    kl: float
    top1: float
    logits: float | None


def distance(wanted: Sequence[NDArray[np.float32]], told: Mapping[str, NDArray[np.float32]]) -> Distance:
    """Of what a consumer said.

    Args:
        wanted: (positions, V) logits of each answer.
        told: For answer i `logits_i` (positions, V), or `ids_i` and `logprobs_i` (positions, K) of the likeliest.
    """
    divergences, same, error, size = [], [], 0.0, 0.0
    for i, want in enumerate(wanted):
        p = _log_softmax(want)
        if f"logits_{i}" in told:
            got = told[f"logits_{i}"].astype(np.float64)
            divergences.append(_kl(p, _log_softmax(got)))
            same.append(p.argmax(1) == got.argmax(1))
            centred = want - want.mean(1, keepdims=True, dtype=np.float64)
            error += float(np.square(centred - (got - got.mean(1, keepdims=True))).sum())
            size += float(np.square(centred).sum())
        else:
            ids, q = told[f"ids_{i}"].astype(np.int64), told[f"logprobs_{i}"].astype(np.float64)
            divergences.append(_kl(_with_rest(np.take_along_axis(p, ids, 1)), _with_rest(q)))
            same.append(p.argmax(1) == np.take_along_axis(ids, q.argmax(1)[:, None], 1)[:, 0])
    relative = (error / size) ** 0.5 if size else None
    return Distance(float(np.concatenate(divergences).mean()), float(np.concatenate(same).mean()), relative)


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return out


def _with_rest(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add the probability of all other tokens as one more; at least 1e-9, below which float32 sums say nothing."""
    rest = np.log(np.maximum(1e-9, 1 - np.exp(logprobs).sum(1, keepdims=True)))
    return np.concatenate([logprobs, rest], axis=1)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(1)
    return out
