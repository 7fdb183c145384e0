"""A worker process that answers, fails, dies or refuses to end."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from strop.errors import StropError
from strop.unsloth.process import Worker, WorkerFailed

WORKER = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps({"answer": "ready", "job": sys.argv[1], "pid": os.getpid()}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["ask"] == "fail":
        print(json.dumps({"answer": "failed", "what": "out of memory", "message": "too large"}), flush=True)
    elif request["ask"] == "die":
        print("its last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif request["ask"] == "sleep":
        time.sleep(600)
    else:
        print(json.dumps({"answer": "did", "given": request.get("given")}), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "double.py").write_text(WORKER)
    return tmp_path


def started(place: Path) -> Worker:
    return Worker("double", place / "job.json", place, {})


def test_it_answers_and_ends_when_its_input_does(place: Path) -> None:
    with started(place) as worker:
        assert worker.answer()["job"] == str(place / "job.json")
        assert worker.ask("this", given=3) == {"answer": "did", "given": 3}
    assert worker._process.returncode == 0


def test_a_failure_says_what_kind_it_is(place: Path) -> None:
    with started(place) as worker:
        worker.answer()
        with pytest.raises(WorkerFailed, match="too large") as caught:
            worker.ask("fail")
        assert caught.value.what == "out of memory"
        assert worker.ask("this")["answer"] == "did"


def test_a_death_is_reported_with_the_last_output(place: Path) -> None:
    with started(place) as worker:
        worker.answer()
        with pytest.raises(StropError, match=f"killed by signal {int(signal.SIGKILL)}(?s:.*)its last words"):
            worker.ask("die")
        with pytest.raises(StropError, match="killed by signal"):
            worker.ask("this")


def test_a_worker_that_never_started_is_reported_too(place: Path) -> None:
    with Worker("no_such_module", place / "job.json", place, {}) as worker:
        with pytest.raises(StropError, match=r"exit status 1(?s:.*)No module named no_such_module"):
            worker.answer()


def test_an_error_on_this_side_leaves_no_process_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and not waited for until its patience is over."""
    worker = started(place)
    pid = worker.answer()["pid"]
    wait, waited_in_vain = worker._process.wait, []

    def watched(timeout: float | None = None) -> int:
        try:
            return wait(timeout)
        except subprocess.TimeoutExpired:
            waited_in_vain.append(timeout)
            raise

    monkeypatch.setattr(worker._process, "wait", watched)
    assert worker._process.stdin is not None
    worker._process.stdin.write('{"ask": "sleep"}\n')
    worker._process.stdin.flush()
    with pytest.raises(KeyboardInterrupt), worker:
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert waited_in_vain == []
