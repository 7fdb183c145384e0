"""How far two models' distributions over the next token are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Likeliest(NamedTuple):
    """The most likely next tokens at some positions, for programs that report no others.

    Attributes:
        ids: int64 (positions, K).
        logprobs: float32 (positions, K), natural logarithms.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Distance:
    """Distances over all positions of all answers.

    Attributes:
        kl: Mean KL divergence from the trained model's distribution, in nats. With `Likeliest` tokens, all others count
            as one token, which can only make it smaller.
        top1: Share of positions with the same most likely token.
        logits: |difference| / |logits|, after subtracting each position's mean. With `Likeliest` tokens, the same for
            their log-probabilities.
    """

    kl: float
    top1: float
    logits: float


def distance(wanted: Sequence[NDArray[np.float32]], told: Sequence[NDArray[np.float32] | Likeliest]) -> Distance:
    """Compare two models on the same answers.

    Args:
        wanted: The trained model's logits, (positions, V) for each answer.
        told: The other model's logits, or its most likely tokens.
    """
    divergences, same, error, size = [], [], 0.0, 0.0
    for want, got in zip(wanted, told, strict=True):
        p = _log_softmax(want.astype(np.float64))
        if isinstance(got, Likeliest):
            same.append(p.argmax(1) == got.ids[np.arange(len(got.ids)), got.logprobs.argmax(1)])
            p, q = np.take_along_axis(p, got.ids, 1), got.logprobs.astype(np.float64)
            divergences.append(_kl(_with_rest(p), _with_rest(q)))
        else:
            q = _log_softmax(got.astype(np.float64))
            same.append(p.argmax(1) == q.argmax(1))
            divergences.append(_kl(p, q))
        centred = p - p.mean(1, keepdims=True)
        error += float(np.square(centred - (q - q.mean(1, keepdims=True))).sum())
        size += float(np.square(centred).sum())
    return Distance(
        float(np.concatenate(divergences).mean()), float(np.concatenate(same).mean()), float(np.sqrt(error / size))
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return out


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(1)
    return out


def _with_rest(logprobs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append the probability of all other tokens as one; at least 1e-9, below which float32 sums are meaningless."""
    rest = np.log(np.maximum(1e-9, 1 - np.exp(logprobs).sum(1, keepdims=True)))
    return np.concatenate([logprobs, rest], axis=1)
