"""What ranks do together: sum tensors, exchange small things, and end together. Here of one that trains alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")


class Team:
    """A rank that trains alone. Everything that several do together is nothing here.

    Attributes:
        rank: From 0.
        size: Number of ranks.
    """

    rank, size = 0, 1

    def each(self, compute: Callable[[], _T]) -> list[_T]:
        """What `compute` returns on each rank, in their order.

        Raises:
            StropError, torch.OutOfMemoryError: It raised that on some rank: the first one's, on all.
            RankLost: A rank has ended.
        """
        return [compute()]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Leave this context only once all ranks do, or with the first one's error on all; see `each`."""
        yield

    def sum_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all ranks, in place, without waiting for a GPU."""

    def tell(self, name: str, *arguments: Any) -> None:
        """Of rank 0: say what all ranks do next."""

    def hear(self) -> tuple[str, Sequence[Any]]:
        """Of the other ranks: wait for what rank 0 says.

        Raises:
            RankLost: It has ended.
        """
        raise RuntimeError("one that is alone would wait for good")


ALONE = Team()
