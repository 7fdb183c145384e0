"""One run on several ranks: rank 0 decides and keeps the run folder, the others do what it says.

Rank 0 runs the loop as if it were alone. Its engine tells the others of each call, and then all make it on their own
`StropEngine`; so there is one place that decides, and no decision that could differ between ranks.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch

from strop.errors import RankLost, StropError
from strop.model.lora import LoraAdapter
from strop.parallel.meeting import Stopped, stopped
from strop.parallel.team import Team
from strop.training.engine import InFlight, StropEngine, Tensors
from strop.training.loss import NonFiniteError
from strop.training.step import StepResult

_T = TypeVar("_T")
CheckStop = Callable[[], None]


def told(team: Team, name: str, compute: Callable[..., _T]) -> Callable[..., _T]:
    """Of rank 0: `compute`, of whose calls the other ranks are told, so that all make them."""

    def compute_on_all(*arguments: Any) -> _T:
        team.tell(name, *arguments)
        return compute(*arguments)

    return compute_on_all


class LeadingEngine:
    """Rank 0's engine: its own, and those of all other ranks with it. See `Engine`."""

    def __init__(self, own: StropEngine, team: Team) -> None:
        self._own, self._team = own, team
        self.device, self.num_trainable, self.save_seconds = own.device, own.num_trainable, own.save_seconds

    @property
    def chosen(self) -> Mapping[str, Any]:
        """See `Engine`."""
        return self._own.chosen

    def explain(self) -> list[str]:
        """See `Engine`."""
        return self._own.explain()

    def launch(self, step: int, learning_rate: float, check_stop: CheckStop) -> InFlight:
        """See `Engine`."""
        self._team.tell("launch", step, learning_rate)
        return _LeadingInFlight(self._own.launch(step, learning_rate, check_stop), self._team)

    def make_room(self, step: int) -> str:
        """See `Engine`."""
        self._team.tell("make_room", step)
        return self._own.make_room(step)

    def weights(self) -> Tensors:
        """See `Engine`; they are the same on each rank."""
        return self._own.weights()

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """See `Engine`."""
        self._team.tell("state")
        return self._own.state()

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """See `Engine`. The other ranks get the state from here, not from a disk that their machine may not have."""
        self._team.tell("load_state", step, tensors, dict(entries))
        self._own.load_state(step, tensors, entries)

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """See `Engine`."""
        return self._own.adapter_with(weights)


class _LeadingInFlight:
    """See `InFlight`."""

    def __init__(self, own: InFlight, team: Team) -> None:
        self._own, self._team = own, team

    @property
    def is_done(self) -> bool:
        """See `InFlight`."""
        return self._own.is_done

    def result(self) -> StepResult:
        """See `InFlight`."""
        self._team.tell("finish")
        return self._own.result()


def obey(team: Team, engine: StropEngine, check_stop: CheckStop, **more: Callable[..., object]) -> Stopped | None:
    """Of the other ranks: do what rank 0 says until it says that the run is over.

    Args:
        team: The ranks.
        engine: This rank's.
        check_stop: Called between microbatches; may raise, and rank 0 learns of it.
        more: What else can be asked for, by its name.

    Returns:
        The error that the run ended with, if any.

    Raises:
        RankLost: A rank has ended.
    """
    in_flight: deque[InFlight] = deque()

    def launch(step: int, learning_rate: float) -> None:
        in_flight.append(engine.launch(step, learning_rate, check_stop))

    def finish() -> None:
        try:
            in_flight.popleft().result()
        except NonFiniteError:
            in_flight.clear()  # as rank 0 does
            raise

    does: dict[str, Callable[..., object]] = {
        "launch": launch,
        "finish": finish,
        "make_room": engine.make_room,
        "state": engine.state,
        "load_state": engine.load_state,
        **more,
    }
    while True:
        name, arguments = team.hear()
        if name == "end":
            return stopped(*arguments)
        try:
            with suppress(torch.OutOfMemoryError):  # raised on all ranks alike: rank 0 decides
                does[name](*arguments)
        except RankLost:
            raise
        except StropError:
            pass  # likewise
