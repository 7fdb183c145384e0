"""Processes that know nothing of each other become a team: each machine prepares once, then all form their groups.

Nobody waits in a collective while a rank reads rows, converts a model or has failed to: it waits for a word in the
store that torchrun keeps, for as long as that takes.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from strop import __version__
from strop.errors import RankLost, RecipeError, StropError
from strop.parallel.meeting import Meeting, RunIsOver, Stopped, stopped
from strop.parallel.place import Place
from strop.parallel.process_team import ProcessTeam, lost_if_it_fails
from strop.parallel.team import Team
from strop.parallel.watch import Watch, beat, end_process

_T = TypeVar("_T")
_AS_LONG_AS_IT_TAKES = timedelta(days=30)
_SUM_TAKES_AT_MOST = timedelta(minutes=10)
"""All ranks are about to begin a sum when one begins, so it waits for computations in progress and nothing else."""
_LOOK_EVERY = 0.1
_OWN = "own GPU"
"""What must not be the same on two ranks."""
_LEADER_SPEAKS_FIRST = 3.0
"""Seconds that other ranks stay after a run has failed: whoever started them ends all once one has ended, and rank 0
should have said why by then."""


class ProcessMeeting(Meeting):
    """See `Meeting`."""

    def __init__(self, place: Place, resume: str) -> None:
        self._place, self._resume = place, resume
        self._watch: Watch | None = None
        _take_gpu(place)
        with lost_if_it_fails("the ranks could not meet"):
            store, _, _ = next(rendezvous("env://", place.rank, place.ranks, timeout=timedelta(minutes=10)))
        prefix = f"strop/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = PrefixStore(prefix, store)
        self._own_connection = partial(PrefixStore, prefix, store.clone())

    def once_per_machine(self, prepare: Callable[[], _T]) -> _T:
        """See `Meeting`."""
        word = f"prepared/{self._place.machine}"
        if self._place.local_rank != 0:
            self._await(word)
            return prepare()
        prepared = prepare()
        self._say(word)
        return prepared

    def form(self, facts: Mapping[str, str]) -> Team:
        """See `Meeting`."""
        place = self._place
        with lost_if_it_fails("rank 0 or its launcher has ended"):
            beat(self._store, place.rank)
        self._say(f"ready/{place.rank}")
        for rank in range(place.ranks):
            self._await(f"ready/{rank}")
        self.team = team = self._joined()
        self._watch = Watch(self._own_connection(), place.rank, place.ranks, partial(end_process, resume=self._resume))
        self._watch.start()
        _refuse_differences(team.each(lambda: {**facts, **_software_and_gpu()}))
        return team

    def _joined(self) -> ProcessTeam:
        place, use_gpu = self._place, torch.cuda.is_available()
        with lost_if_it_fails("the ranks could not form a group"):
            dist.init_process_group(
                "nccl" if use_gpu else "gloo",
                store=self._store,
                rank=place.rank,
                world_size=place.ranks,
                timeout=_SUM_TAKES_AT_MOST,
                device_id=torch.device("cuda", torch.cuda.current_device()) if use_gpu else None,
            )
            host = dist.new_group(backend="gloo", timeout=_AS_LONG_AS_IT_TAKES)
        assert dist.group.WORLD is not None
        return ProcessTeam(host, dist.group.WORLD)

    @contextmanager
    def led(self) -> Iterator[None]:
        """See `Meeting`."""
        try:
            yield
        except RankLost:
            _speak_last()
            raise
        except StropError as error:
            _speak_last()
            self._end(error)
            raise
        self._end(None)

    def _end(self, error: StropError | None) -> None:
        with suppress(RankLost):
            if isinstance(self.team, ProcessTeam):
                self.team.tell("end", _as_told(error))
            else:
                self._say("over", json.dumps(_as_told(error)))
        self._leave()

    def failed(self, error: StropError) -> None:
        """See `Meeting`."""
        self._say("over", json.dumps(_as_told(error)))

    def trains(self) -> None:
        """See `Meeting`."""
        assert self._watch is not None
        self._watch.trains()

    def ended(self, error: Stopped | None) -> None:
        """See `Meeting`."""
        self._leave()
        if error is not None:
            time.sleep(_LEADER_SPEAKS_FIRST)
            raise error

    def _leave(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _say(self, word: str, more: str = "") -> None:
        with lost_if_it_fails("rank 0 or its launcher has ended"):
            self._store.set(word, more)

    def _await(self, word: str) -> None:
        """Wait for a word. Not in the store, which would keep signals waiting too."""
        with lost_if_it_fails("rank 0 or its launcher has ended"):
            while not self._store.check([word]):
                if self._store.check(["over"]):
                    raise stopped(json.loads(self._store.get("over"))) or RunIsOver()
                time.sleep(_LOOK_EVERY)


def _speak_last() -> None:
    """Whoever started the ranks ends all once one has ended: not this one, which has yet to say why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_told(error: StropError | None) -> tuple[str, int] | None:
    return None if error is None else (str(error), error.exit_code)


def _take_gpu(place: Place) -> None:
    """Make this rank's GPU the current one.

    Raises:
        RecipeError: This machine has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return
    found = torch.cuda.device_count()
    if found == 1:  # launchers such as srun show each rank its own; two ranks on one GPU are found later
        return
    if place.local_ranks > found:
        raise RecipeError(f"{place.local_ranks} ranks were started on a machine with {found} GPUs; start {found}")
    torch.cuda.set_device(place.local_rank)


def _software_and_gpu() -> dict[str, str]:
    found = {"strop": __version__, "torch": str(torch.__version__)}
    if not torch.cuda.is_available():
        return found
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return found | {"kind of GPU": gpu.name, _OWN: str(gpu.uuid)}


def _refuse_differences(facts: Sequence[Mapping[str, str]]) -> None:
    """Ranks that differ would make other updates; two ranks on one GPU would each have half of it, and nobody know."""
    first = facts[0]
    for rank, found in enumerate(facts):
        others = [name for name in found if name != _OWN and found[name] != first.get(name)]
        if others:
            said = ", ".join(f"{name} ({first.get(name, 'none')[:40]} and {found[name][:40]})" for name in others)
            raise RecipeError(f"rank 0 and rank {rank} have not the same {said}; make them the same, and start again")
        twins = [twin for twin in range(rank) if _OWN in found and facts[twin].get(_OWN) == found[_OWN]]
        if twins:
            raise RecipeError(
                f"rank {twins[0]} and rank {rank} have the same GPU ({found[_OWN]}); start a rank for each"
            )
