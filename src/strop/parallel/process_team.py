"""Ranks that are processes, with torch.distributed between them.

Whatever can fail on one rank alone (no memory, a signal, a loss that is not finite) is exchanged before any rank goes
on, so all raise the same error at the same place, and none waits in a sum for one that has given up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from strop.errors import RankLost, StropError
from strop.parallel.team import Team

_T = TypeVar("_T")


class ProcessTeam(Team):
    """Several ranks, each of which is a process.

    Attributes:
        host: Its collectives work on the host and may wait for as long as another rank takes.
        device: Its collectives work on the GPUs; they are only begun once all ranks are about to.
    """

    def __init__(self, host: dist.ProcessGroup, device: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(host), dist.get_world_size(host)
        self._host, self._device = host, device

    def each(self, compute: Callable[[], _T]) -> list[_T]:
        """See `Team`."""
        value, error = None, None
        try:
            value = compute()
        except (StropError, torch.OutOfMemoryError) as raised:
            error = raised
        return [value for value, _ in self._exchanged((value, error))]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """See `Team`."""
        error = None
        try:
            yield
        except (StropError, torch.OutOfMemoryError) as raised:
            error = raised
        self._exchanged((None, error))

    def sum_up(self, *tensors: Tensor) -> None:
        """See `Team`."""
        for tensor in tensors:
            with lost_if_it_fails():
                dist.all_reduce(tensor, group=self._device)

    def tell(self, name: str, *arguments: Any) -> None:
        """See `Team`."""
        with lost_if_it_fails():
            dist.broadcast_object_list([(name, arguments)], src=0, group=self._host)

    def hear(self) -> tuple[str, Sequence[Any]]:
        """See `Team`."""
        said: list[Any] = [None]
        with lost_if_it_fails():
            dist.broadcast_object_list(said, src=0, group=self._host)
        name, arguments = said[0]
        return name, arguments

    def _exchanged(self, mine: tuple[Any, Exception | None]) -> list[tuple[Any, Exception | None]]:
        if isinstance(mine[1], RankLost):
            raise mine[1]
        found: list[Any] = [None] * self.size
        with lost_if_it_fails():
            dist.all_gather_object(found, mine, group=self._host)
        for rank, (_, error) in enumerate(found):
            if error is not None:
                raise mine[1] if rank == self.rank and mine[1] is not None else error
        return found


@contextmanager
def lost_if_it_fails(
    what: str = "another rank has ended; if it could, it has said why",
) -> Iterator[None]:
    """Within its context, a connection that breaks is a `RankLost`: gloo fails at once in the ranks that are left."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, StropError | torch.OutOfMemoryError):
            raise
        raise RankLost(what) from error
