"""What an attempt makes of its child's end, of signals, of time and of a newer attempt; here a line of Python."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.errors import Interrupted
from strop.modal_runs.attempt import Pace, run_attempt
from strop.modal_runs.fence import FENCE_FILE
from strop.modal_runs.remote_run import Outcome, Places, TrainingJob
from strop.recipe import DataSection, ModelSection, Recipe, load_recipe
from waiting import PATIENCE, until

RUN = "mine-0123456789"
SAVES = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep({PATIENCE})"
WAIT = f"""
import os, time
def wait(path):
    end = time.monotonic() + {PATIENCE}
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.005)
"""


class Folder:
    """The runs Volume as a plain folder; keeps what each commit found.

    Attributes:
        refuses: So many commits of a checkpoint are refused.
        told: Here are files for a child to wait for: `commit-N` after N commits, `unread` after a read that failed.
    """

    def __init__(self, root: Path, refuses: int = 0) -> None:
        self.root, self.refuses = root, refuses
        self.told = root.parent / "told"
        self.told.mkdir(exist_ok=True)
        self.commits: list[set[str]] = []

    def reload(self) -> None:
        pass

    def commit(self) -> None:
        found = {path.relative_to(self.root).as_posix() for path in self.root.rglob("*")}
        if self.refuses and any("/step-" in name for name in found):
            self.refuses -= 1
            raise OSError("busy")
        self.commits.append(found)
        (self.told / f"commit-{len(self.commits)}").touch()

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError:
            (self.told / "unread").touch()
            raise


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("data", "runs", "cache"):
        (tmp_path / name).mkdir()
    return Places(tmp_path)


@pytest.fixture
def attempt(places: Places) -> Callable[..., Outcome]:
    def attempt(code: str, timeout: int = 3600, storage: Folder | None = None) -> Outcome:
        recipe = Recipe(
            model=ModelSection(model_name_or_path="uploaded:models/abc"),
            data=DataSection(train_file=("uploaded:inputs/abc/rows.jsonl", "some/hub-rows")),
        )
        job = TrainingJob(RUN, recipe.model_dump(mode="json"), "H100:2", timeout)
        program = (sys.executable, "-c", code)
        return run_attempt(job, places, storage or Folder(places.runs), Pace(0.01, 0.05), program)

    return attempt


def later(action: Callable[[], object], when: Callable[[], object]) -> None:
    """Do something as soon as a condition holds."""

    threading.Thread(target=lambda: (until(when), action()), daemon=True).start()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 130])
def test_a_final_exit_code_is_returned(code: int, attempt: Callable[..., Outcome]) -> None:
    assert attempt(f"raise SystemExit({code})") == Outcome(code, attempt=1)


@pytest.mark.parametrize("end", ["raise SystemExit(75)", "import os; os.kill(os.getpid(), 9)"])
def test_75_and_death_by_a_signal_are_raised(end: str, attempt: Callable[..., Outcome]) -> None:
    with pytest.raises(Interrupted, match=r"exit code 75|SIGKILL"):
        attempt(end)
    assert attempt("pass").attempt == 2


def test_the_child_gets_the_recipe_and_what_it_needs_to_account_for_the_cost(
    attempt: Callable[..., Outcome], places: Places
) -> None:
    out = places.root / "out.json"
    code = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({str(out)!r}, 'w'))"
    before = time.time()
    attempt(code)
    (command, path), environment = json.loads(out.read_text())
    recipe = load_recipe(path)
    assert command == "train"
    assert recipe.model.model_name_or_path == str(places.data / "models/abc")
    assert recipe.data.train_file == (str(places.data / "inputs/abc/rows.jsonl"), "some/hub-rows")
    assert recipe.output_dir == places.runs / RUN / "run"
    assert environment["STROP_MODAL_GPU"] == "H100:2"
    assert before - 0.001 <= float(environment["STROP_ATTEMPT_STARTED"]) <= time.time()  # it has milliseconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_what_was_saved_is_committed(
    number: signal.Signals, attempt: Callable[..., Outcome], places: Places
) -> None:
    storage, ready = Folder(places.runs), places.runs / RUN / "ready"
    save = "(open(run + '/saved', 'w'), sys.exit(75))"
    code = (
        f"import signal, sys, time; run = {str(ready.parent)!r}\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {save})\nopen({str(ready)!r}, 'w')\ntime.sleep({PATIENCE})"
    )
    later(lambda: os.kill(os.getpid(), number), ready.exists)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        attempt(code, storage=storage)
    assert f"{RUN}/saved" in storage.commits[-1]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("timeout", "stopped"), [(3600, 3300), (400, 300)], ids=["long", "short"])
def test_the_child_is_stopped_before_the_time_is_over(
    timeout: int, stopped: int, attempt: Callable[..., Outcome], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five minutes before, or a quarter of a shorter time. The clock goes on by a minute with every look at it."""
    clock, ready = [1000.0], places.root / "ready"

    def look() -> float:
        clock[0] += 60 * ready.exists()
        return clock[0]

    monkeypatch.setattr("strop.modal_runs.attempt.time", SimpleNamespace(time=look, monotonic=time.monotonic))
    with pytest.raises(Interrupted, match="time is over"):
        attempt(SAVES.replace("time.sleep", f"open({str(ready)!r}, 'w'); time.sleep"), timeout=timeout)
    assert clock == [1000.0 + stopped]


def test_each_checkpoint_is_committed_when_it_appears(attempt: Callable[..., Outcome], places: Places) -> None:
    storage = Folder(places.runs)
    code = (
        f"{WAIT}\nrun = {str(places.runs / RUN / 'run')!r}\n"
        "for step in (1, 2):\n"
        f"    os.makedirs(f'{{run}}/checkpoints/step-{{step}}'); wait(f'{storage.told}/commit-{{step + 1}}')"
    )
    attempt(code, storage=storage)
    counts = [sum("/step-" in name for name in names) for names in storage.commits]
    assert counts == [0, 1, 2, 2]  # the fence, each checkpoint, the end


def test_a_commit_that_is_refused_is_made_again(attempt: Callable[..., Outcome], places: Places) -> None:
    storage = Folder(places.runs, refuses=2)
    step = places.runs / RUN / "run/checkpoints/step-1"
    attempt(f"{WAIT}\nos.makedirs({str(step)!r}); wait({str(storage.told / 'commit-2')!r})", storage=storage)
    assert storage.refuses == 0
    assert sum(any("/step-1" in name for name in names) for names in storage.commits) == 2  # the second is the end's


def test_the_older_attempt_kills_its_child_and_commits_nothing(attempt: Callable[..., Outcome], places: Places) -> None:
    storage, fence, ended = Folder(places.runs), places.runs / RUN / FENCE_FILE, places.root / "ended"
    later(lambda: fence.write_text('{"attempt": 2, "token": "another"}'), lambda: storage.commits)
    code = f"try:\n    import time; time.sleep({PATIENCE})\nfinally:\n    open({str(ended)!r}, 'w')"
    assert attempt(code, storage=storage) == Outcome(75, attempt=1, superseded=True)
    assert not ended.exists(), "it was killed"
    assert len(storage.commits) == 1  # its own fence, at the beginning
    assert json.loads(fence.read_text())["token"] == "another"


def test_a_fence_that_cannot_be_read_stops_nobody(attempt: Callable[..., Outcome], places: Places) -> None:
    storage = Folder(places.runs)
    later((places.runs / RUN / FENCE_FILE).unlink, lambda: storage.commits)
    unread = storage.told / "unread"
    assert attempt(f"{WAIT}\nwait({str(unread)!r})", storage=storage).exit_code == 0
    assert unread.exists()


def test_whatever_ends_the_attempt_no_child_is_left(
    attempt: Callable[..., Outcome], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(BaseException):
        pass

    pid = places.root / "pid"

    def cancel(*_: object) -> None:
        until(lambda: pid.exists() and pid.read_text())
        raise Cancelled

    monkeypatch.setattr(Folder, "read", cancel)
    with pytest.raises(Cancelled):
        attempt(f"import os; open({str(pid)!r}, 'w').write(str(os.getpid()))\n{SAVES}")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_files_of_the_run_are_listed_with_their_hashes(attempt: Callable[..., Outcome], places: Places) -> None:
    run = places.runs / RUN / "run"
    attempt(f"import os; os.makedirs({str(run / 'adapter')!r}); open({str(run / 'adapter/weights')!r}, 'w').write('x')")
    listed = json.loads((places.runs / RUN / "files.json").read_text())
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert listed == {"adapter/weights": {"sha256": sha256, "size": 1}}
