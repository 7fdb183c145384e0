"""From processes that know nothing of each other to a team. Here of one that is alone: nothing is waited for."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from strop.parallel.team import ALONE, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from strop.errors import StropError
    from strop.parallel.place import Place

_T = TypeVar("_T")


class RunIsOver(Exception):
    """Rank 0 has ended the run before this rank joined in.

    Attributes:
        error: How; None if there was nothing left to do.
    """

    def __init__(self, error: StropError | None) -> None:
        super().__init__()
        self.error = error


class Meeting:
    """The ranks of a run before they are a team, and after."""

    team: Team = ALONE

    def once_per_machine(self, prepare: Callable[[], _T]) -> _T:
        """`prepare()` on each rank, but first on one of each machine: the others find in the cache what it has made.

        Raises:
            RunIsOver: It ended before that.
        """
        return prepare()

    def form(self, facts: Mapping[str, str]) -> Team:
        """Form the team, once every rank is ready to.

        Args:
            facts: What must be the same on all ranks, by what it is of.

        Raises:
            RunIsOver: It ended before that.
            RecipeError: Ranks have the same GPU, or different facts, software or kinds of GPU.
        """
        return self.team

    @contextmanager
    def led(self) -> Iterator[None]:
        """Of rank 0: when this context is left, the others are told that the run is over, and how it ended."""
        yield

    def ended(self, error: StropError | None) -> None:
        """Of the other ranks: leave as rank 0 has said that the run ended.

        Raises:
            StropError: That of rank 0.
        """


def meet(place: Place, resume: str) -> Meeting:
    """Meet the other ranks, if there are any.

    Args:
        place: This process's.
        resume: What to do next, for the message of a rank that finds another one lost.

    Raises:
        RankLost: There is no meeting point.
    """
    if place.ranks == 1:
        return Meeting()
    from strop.parallel.process_meeting import ProcessMeeting

    return ProcessMeeting(place, resume)
