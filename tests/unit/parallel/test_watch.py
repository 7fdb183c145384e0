import time

import pytest
import torch.distributed as dist

from strop.parallel import watch
from strop.parallel.watch import Watch, beat
from waiting import until


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_EVERY", 0.02)
    monkeypatch.setattr(watch, "LOST_AFTER", 0.3)


def test_a_rank_that_trains_and_is_silent_is_lost_and_one_that_loads_is_not() -> None:
    store, lost = dist.HashStore(), []
    for rank in range(3):
        beat(store, rank)
    watching, other = Watch(store, 0, 3, lost.extend), Watch(store, 1, 3, lambda lost: None)
    watching.start()
    other.start()
    time.sleep(0.6)
    assert lost == [], "rank 2 loads: it may be silent for minutes"
    other.trains()
    time.sleep(0.6)
    assert lost == [], "rank 1 trains, and beats"
    other.stop()
    until(lambda: lost == [1])


def test_a_store_that_has_gone_is_a_loss() -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("Connection reset by peer")

    lost: list[int] = []
    Watch(Gone(), 2, 3, lost.extend).start()  # type: ignore[arg-type]
    until(lambda: lost == [0])


def test_one_that_has_stopped_finds_no_one_lost() -> None:
    store, lost = dist.HashStore(), []
    for rank in range(2):
        beat(store, rank, patience=0.1)
    watching = Watch(store, 0, 2, lost.extend)
    watching.start()
    watching.stop()
    watching.join()
    assert lost == []
