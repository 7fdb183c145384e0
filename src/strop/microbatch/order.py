"""Which samples make up step n: a pure function of the seed, the number of samples and n.

Nothing is shuffled in memory, and resuming skips nothing: each epoch's order is a pseudo-random permutation, evaluated
one index at a time, so 2 billion rows cost no more than 2 million.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strop.recipe import TrainSection

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which a run sees its samples.

    All epochs form one stream, cut into steps of `samples_per_step`: a step may hold the end of one epoch and the
    beginning of the next. Only the last step may be shorter, and only if the run's length is given in epochs, so that
    each epoch visits each sample exactly once. A run has at least one step.

    Attributes:
        num_samples: Samples in the store.
        samples_per_step: The user's batch size.
        num_epochs: Length of the run if `max_steps` is None.
        max_steps: Length of the run in steps, however many epochs that takes.
        seed: Each seed gives another order.
    """

    num_samples: int
    samples_per_step: int
    num_epochs: float
    max_steps: int | None
    seed: int

    @classmethod
    def of(cls, section: TrainSection, num_samples: int) -> "Order":
        """The order that a recipe asks for."""
        max_steps = section.max_steps if section.max_steps > 0 else None
        return cls(num_samples, section.samples_per_step, section.num_train_epochs, max_steps, section.seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or -(-self._length // self.samples_per_step)

    def samples(self, step: int) -> NDArray[np.int64]:
        """Indices of the samples in a step, counted from 0."""
        first, last = step * self.samples_per_step, (step + 1) * self.samples_per_step
        if self.max_steps is None:
            last = min(last, self._length)
        position = np.arange(first, last, dtype=np.int64)
        epoch, within = position // self.num_samples, position % self.num_samples
        parts = [_permute(within[epoch == e], self.num_samples, self.seed, int(e)) for e in np.unique(epoch)]
        return np.concatenate(parts) if parts else position

    @property
    def _length(self) -> int:
        """Samples seen in a run of `num_epochs`, counting repetitions; at least one."""
        return max(1, round(self.num_samples * self.num_epochs))

    def explain(self) -> Iterator[str]:
        """What a length in epochs means for these samples, where it may not be what was meant."""
        steps = f"{self.num_steps:,} {'step' if self.num_steps == 1 else 'steps'}"
        given = f"train.num_train_epochs={self.num_epochs:g} of {self.num_samples:,} samples"
        if self.max_steps is None and self.num_samples * self.num_epochs < 1:
            yield f"{given} is less than one sample, so one is seen: {steps}"
        elif self.max_steps is None and self.num_steps != (theirs := self._steps_of_trainer):
            yield (
                f"{given}, {self.samples_per_step:,} a step: {steps}, because a step may cross the end of an epoch "
                f"(transformers' Trainer begins a new one there, which makes {theirs:,})"
            )

    @property
    def _steps_of_trainer(self) -> int:
        return math.ceil(self.num_epochs * -(-self.num_samples // self.samples_per_step))


def _permute(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(n), evaluated at `index`.

    A Feistel network over the next even power of two is a bijection for any round function (Luby and Rackoff 1988).
    Indices that land outside range(n) are mapped again until they land inside ("cycle walking", Black and Rogaway
    2002). The domain is at most four times n, so a few rounds suffice.
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
