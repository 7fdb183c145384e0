"""What a run on a rented GPU costs: the dollars of all its attempts, and the limit at which it has to end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from strop.errors import BudgetReached
from strop.run.folder import RunFolder
from strop.run.manifest import AttemptCost


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts while an attempt runs. An estimate until the bill comes: a price list times this machine's clock.

    Attributes:
        gpu: What is rented, such as H200 or H100:2.
        dollars_per_second: Of the whole container: GPUs, cores and memory.
        started: When billing of this attempt began, in Unix seconds.
        earlier: The attempts before this one, as the manifest lists them.
        limit: Dollars that all attempts together may cost; None for no limit.
        now: The time in Unix seconds.
    """

    gpu: str
    dollars_per_second: float
    started: float
    earlier: tuple[AttemptCost, ...] = ()
    limit: float | None = None
    now: Callable[[], float] = time.time

    @property
    def seconds(self) -> float:
        """Since billing of this attempt began."""
        return max(0.0, self.now() - self.started)

    @property
    def before(self) -> float:
        """Dollars of the attempts before this one."""
        return float(sum(cost.dollars for cost in self.earlier))

    @property
    def dollars(self) -> float:
        """So far, over all attempts."""
        return self.before + self.dollars_per_second * self.seconds

    def check(self, reserve: float = 0.0) -> None:
        """Raise `BudgetReached` if no more than `reserve` seconds are left until the limit."""
        if self.limit is not None and self.dollars + self.dollars_per_second * reserve >= self.limit:
            raise BudgetReached(f"stopped by modal.max_cost={self.limit:g}: ${self.dollars:.2f} so far")

    def entry(self, attempt: int) -> AttemptCost:
        """This attempt so far."""
        return AttemptCost(
            attempt=attempt,
            gpu=self.gpu,
            started=datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            dollars_per_second=self.dollars_per_second,
            seconds=round(self.seconds, 1),
            dollars=round(self.seconds * self.dollars_per_second, 4),
        )


def enter_cost(folder: RunFolder, meter: Meter | None) -> None:
    """Put the cost of all attempts into the manifest, this one's so far; nothing if nothing is billed."""
    if meter is not None:
        costs = (*meter.earlier, meter.entry(folder.begun.attempts))
        folder.update(lambda manifest: replace(manifest, costs=costs, dollars=round(meter.dollars, 4)))


def with_unfinished(costs: Sequence[AttemptCost], dollars: float) -> tuple[AttemptCost, ...]:
    """The attempts of a manifest, the last one brought up to the `dollars` that its metrics end with.

    An attempt that was killed could not write down its end. What it cost after its last step, at most about a step's
    time, is lost.
    """
    missing = dollars - sum(cost.dollars for cost in costs)
    if not costs or missing <= 0:
        return tuple(costs)
    *before, last = costs
    total = round(last.dollars + missing, 4)
    return (*before, replace(last, dollars=total, seconds=round(total / last.dollars_per_second, 1)))
