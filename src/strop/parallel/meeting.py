"""From processes that know nothing of each other to a team. Here of one that is alone: nothing is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from strop.errors import StropError
from strop.parallel.team import ALONE, Team

_T = TypeVar("_T")


class Stopped(StropError):
    """Another rank has failed or was stopped, and has said why; the exit code is its own."""

    def __init__(self, said: str, exit_code: int) -> None:
        super().__init__(said)
        self.exit_code = exit_code  # type: ignore[misc]


def stopped(said: tuple[str, int] | None) -> Stopped | None:
    """What rank 0 says of the end, as an error; None if the run has finished."""
    return None if said is None else Stopped(*said)


class RunIsOver(Exception):
    """There is nothing left to do: the run had finished before this rank joined in."""


class Meeting:
    """The ranks of a run before they are a team, and after."""

    team: Team = ALONE

    def once_per_machine(self, prepare: Callable[[], _T]) -> _T:
        """`prepare()` on each rank, but first on one of each machine: the others find in the cache what it has made.

        Raises:
            RunIsOver, Stopped: It ended before that.
        """
        return prepare()

    def form(self, facts: Mapping[str, str]) -> Team:
        """Form the team, once every rank is ready to.

        Args:
            facts: What must be the same on all ranks, by what it is of.

        Raises:
            RunIsOver, Stopped: It ended before that.
            RecipeError: Ranks have the same GPU, or different facts, software or kinds of GPU.
        """
        return self.team

    def trains(self) -> None:
        """This rank has loaded all that it needs: from now on it is found within seconds if it stands still."""

    @contextmanager
    def led(self) -> Iterator[None]:
        """Of rank 0: when this context is left, the others are told that the run is over, and how it ended."""
        yield

    def failed(self, error: StropError) -> None:
        """Of another rank: tell rank 0, which may be waiting for it, that it cannot join in."""

    def ended(self, error: Stopped | None) -> None:
        """Of the other ranks: leave as rank 0 has said that the run ended.

        Raises:
            Stopped: It did not finish.
        """
