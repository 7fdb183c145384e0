"""Which rank this process is, as torchrun says it in the environment; whoever starts ranks says it so."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from strop.errors import RecipeError

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This process among all that train together.

    Attributes:
        rank: From 0; rank 0 leads: it writes the run folder and talks to people.
        ranks: How many there are.
        local_rank: Its number on this machine, and of its GPU.
        local_ranks: How many are on this machine.
        machine: The machine's number.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    machine: int = 0

    @property
    def leads(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0

    def __str__(self) -> str:
        """As errors name it, such as `rank 3`."""
        return f"rank {self.rank}"


def here(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process; that of one alone where nobody has started ranks.

    Raises:
        RecipeError: The environment is incomplete or contradicts itself: training alone would be something else than
            what was asked for.
    """
    if environment.get("WORLD_SIZE", "1") == "1" and environment.get("RANK", "0") == "0":
        return Place()
    if missing := [name for name in _NEEDED if name not in environment]:
        raise RecipeError(
            f"RANK or WORLD_SIZE asks for several ranks, and these are not set: {', '.join(missing)}. "
            "Start them with torchrun, or set what it sets"
        )
    rank, ranks, local_rank, local_ranks = (_number(environment, name) for name in _NEEDED[:4])
    machine = _number(environment, "GROUP_RANK") if "GROUP_RANK" in environment else rank // max(1, local_ranks)
    if not (0 <= rank < ranks and 0 <= local_rank < local_ranks <= ranks):
        raise RecipeError(
            f"RANK={rank} of WORLD_SIZE={ranks} and LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE={local_ranks} "
            "contradict each other"
        )
    return Place(rank, ranks, local_rank, local_ranks, machine)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise RecipeError(f"{name}={environment[name]!r} in the environment is not a number") from None
