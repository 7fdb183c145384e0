"""Which samples make step n: a pure function of the seed, the number of samples and n.

Nothing is shuffled into memory and nothing is skipped at resume: each epoch's order is a pseudo-random permutation
that is evaluated one index at a time, so 2 million rows and 2 billion cost the same.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def num_steps(num_samples: int, samples_per_step: int, num_train_epochs: float, max_steps: int = -1) -> int:
    """Optimizer steps of a run; `max_steps` counts if it is not -1, and the epochs then go on as far as needed."""
    if max_steps > 0:
        return max_steps
    return -(-round(num_samples * num_train_epochs) // samples_per_step)


def step_samples(
    step: int, num_samples: int, samples_per_step: int, num_train_epochs: float, max_steps: int, seed: int
) -> NDArray[np.int64]:
    """Indices of the samples that make a step.

    The stream of all epochs is cut into steps of `samples_per_step`; only the last step of a run that is counted in
    epochs may be shorter, so that one epoch visits each sample exactly once.

    Args:
        step: Counted from 0.
        num_samples: Samples in the store.
        samples_per_step: The user's batch.
        num_train_epochs: Length of the run where `max_steps` is -1.
        max_steps: Length of the run in steps, or -1.
        seed: Of the order.
    """
    first, last = step * samples_per_step, (step + 1) * samples_per_step
    if max_steps <= 0:
        last = min(last, round(num_samples * num_train_epochs))
    position = np.arange(first, last, dtype=np.int64)
    epoch, within = position // num_samples, position % num_samples
    parts = [_permute(within[epoch == e], num_samples, seed, int(e)) for e in np.unique(epoch)]
    return np.concatenate(parts) if parts else position


def _permute(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(n), evaluated at `index`.

    A Feistel network over the next even power of two is a bijection whatever its round function (Luby and Rackoff
    1988); indices that land outside range(n) go round again until they are inside ("cycle walking", Black and
    Rogaway 2002). The domain is at most four times n, so a few rounds suffice.
    """
    half_bits = max(1, ((max(n - 1, 1)).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    value = _feistel(index.astype(np.uint64), half_bits, keys)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], half_bits, keys)
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); multiplication wraps, as it should."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
