"""The log of a call, each entry once, over a connection that comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import modal
import pytest

from strop.errors import CloudError, Interrupted, RecipeError
from strop.modal_runs import follow, require_modal
from strop.modal_runs.follow import CallLog, wait
from strop.modal_runs.remote_run import Outcome


@dataclass
class Entry:
    message: str
    timestamp: datetime
    source: str = "stdout"


ENTRIES = [Entry(f"line {i}\n", datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=i)) for i in range(6)]


@dataclass
class Call:
    """Answers `get` and streams from a script; an exception in it is raised."""

    streams: list[Any]
    results: list[Any] = field(default_factory=lambda: [{"exit_code": 0, "attempt": 1}])

    @property
    def logs(self) -> SimpleNamespace:
        return SimpleNamespace(stream=SimpleNamespace(aio=self._stream), fetch=SimpleNamespace(aio=self._fetch))

    @property
    def get(self) -> SimpleNamespace:
        return SimpleNamespace(aio=self._get)

    async def _stream(self, timeout: float | None) -> AsyncIterator[Entry]:
        for item in self.streams.pop(0):
            if isinstance(item, Exception):
                raise item
            yield item

    async def _fetch(self, since: datetime | None) -> AsyncIterator[Entry]:
        for entry in ENTRIES:
            if since is None or entry.timestamp >= since:
                yield entry

    async def _get(self, timeout: float) -> Any:
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LONGEST_WAIT", 0.0)


def followed(call: Call, patience: float | None = None) -> tuple[Outcome | None, str]:
    shown: list[str] = []
    log = CallLog(call, lambda text, source: shown.append(text) if source == "stdout" else None)
    return asyncio.run(wait(log, patience)), "".join(shown)


ALL = "".join(entry.message for entry in ENTRIES)


def test_a_lost_connection_loses_and_repeats_nothing() -> None:
    lost = modal.exception.ConnectionError("gone")
    call = Call([[*ENTRIES[:2], lost], [OSError("unreachable")], [*ENTRIES[:4], lost], ENTRIES[3:5]])
    assert followed(call) == (Outcome(0, 1), ALL)  # the last was never streamed, and fetched at the end


def test_a_quiet_run_is_not_taken_for_one_that_ended() -> None:
    call = Call([ENTRIES[:1], [], ENTRIES[1:]], [TimeoutError(), TimeoutError(), {"exit_code": 3, "attempt": 2}])
    assert followed(call, patience=600) == (Outcome(3, 2), ALL)


def test_a_run_that_never_begins_is_given_up_after_the_patience() -> None:
    assert followed(Call([[]], [TimeoutError()]), patience=600) == (None, "")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Interrupted("the attempt's time is over"), Interrupted, "same command to resume"),
        (modal.exception.FunctionTimeoutError("x"), Interrupted, "same command to resume"),
        (modal.exception.InputCancellation("x"), Interrupted, "cancelled"),
        (modal.exception.AuthError("x"), CloudError, "modal setup"),
        (modal.exception.NotFoundError("x"), CloudError, "not found on Modal"),
        (modal.exception.RemoteError("strange"), CloudError, "strange"),
    ],
)
def test_how_a_call_fails_is_said(error: BaseException, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        followed(Call([ENTRIES], [error]))


def test_output_that_has_gone_ends_the_following() -> None:
    def emit(text: str, source: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        asyncio.run(wait(CallLog(Call([ENTRIES]), emit)))


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.modal_runs.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"strop\[modal\]"):
        require_modal()
