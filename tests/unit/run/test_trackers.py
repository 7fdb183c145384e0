"""Trackers: what they are told, and that nothing they do reaches the training."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from run_folders import train_record
from strop.errors import RecipeError
from strop.recipe import TrainSection
from strop.run.records import EvalRecord, TrainRecord
from strop.run.reporter import Reporter
from strop.run.trackers import feed, tracker
from strop.run.trackers.feed import TrackingReporter
from strop.run.trackers.tracker import TrackedRun, require
from waiting import PATIENCE


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def on_step(self, record: TrainRecord) -> None:
        self.steps.append(record.step)


class Fake:
    """Keeps what it is told; raises or hangs where it is asked to."""

    def __init__(self, at: str = "", harm: Any = None) -> None:
        self.at, self.harm = at, harm
        self.entries: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def open(self, name: str, run: TrackedRun) -> "Fake":
        self._suffer("open")
        self.run = run
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._suffer("log")
        self.entries.append((step, values))

    def close(self) -> None:
        self._suffer("close")
        self.closed = True

    def _suffer(self, where: str) -> None:
        if where == self.at:
            self.harm()


def tracked(folder: Path, step: int) -> TrackedRun:
    return TrackedRun("abc123", "demo", folder, step, {"train": {"learning_rate": 1e-3}})


def follow(folder: Path, fake: Fake, first: int = 0, last: int = 4, seen: dict[str, int] | None = None) -> Notes:
    console = Notes()
    reporter = TrackingReporter(console, ["wandb"], lambda step: tracked(folder, step), seen, fake.open)
    reporter.on_start(first, 4)
    for step in range(first + 1, last + 1):
        reporter.on_step(train_record(step))
        if step % 2 == 0:
            reporter.on_eval(EvalRecord(step, 2 / step))
    reporter.close()
    assert console.steps == list(range(first + 1, last + 1))  # the console missed nothing, whatever happened
    return console


def test_it_is_told_every_step_and_evaluation(tmp_path: Path) -> None:
    fake = Fake()
    assert follow(tmp_path, fake).notes == []
    assert fake.closed
    assert [step for step, _ in fake.entries] == [1, 2, 2, 3, 4, 4]
    (_, step), (_, evaluation) = fake.entries[-2:]
    known = {key: value for key, value in asdict(train_record(4)).items() if key != "step" and value is not None}
    assert step == {f"train/{key}": value for key, value in known.items()}
    assert len(step) == 8
    assert evaluation == {"eval/loss": 0.5}


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    fake = Fake()
    follow(tmp_path, fake, first=1, seen={"train": 2})  # killed at step 2, before its evaluation
    assert [(step, next(iter(values))) for step, values in fake.entries] == [
        (2, "eval/loss"),
        (3, "train/loss"),
        (4, "train/loss"),
        (4, "eval/loss"),
    ]
    assert (fake.run.id, fake.run.step) == ("abc123", 1)


def raises() -> None:
    raise RuntimeError("api_key not configured\nand more lines")


def leaves() -> None:
    raise SystemExit(1)


@pytest.mark.parametrize("at", ["open", "log", "close"])
@pytest.mark.parametrize("harm", [raises, leaves])
def test_one_that_raises_is_one_note(tmp_path: Path, at: str, harm: Any) -> None:
    (note,) = follow(tmp_path, Fake(at, harm)).notes
    assert note.startswith(
        f"wandb is off: {'RuntimeError: api_key not configured' if harm is raises else 'SystemExit'}"
    )
    assert "Training continues" in note


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What a tracker waits for that hangs; it comes at the end of the test."""
    released = threading.Event()
    yield released
    released.set()


@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_one_that_hangs_is_waited_for_some_seconds_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, hang: threading.Event
) -> None:
    monkeypatch.setattr(feed, "_END_SECONDS", 0.2)
    ended = []
    (note,) = follow(tmp_path, Fake(at, lambda: ended.append(hang.wait(PATIENCE)))).notes
    assert note.startswith("wandb is off: it did not finish within 0.2 s")
    assert ended == [], "it hangs still"


def test_one_that_is_far_behind_is_off_and_holds_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang: threading.Event
) -> None:
    monkeypatch.setattr(feed, "_HELD", 2)
    monkeypatch.setattr(feed, "_END_SECONDS", 0.1)
    (note,) = follow(tmp_path, Fake("open", lambda: hang.wait(PATIENCE))).notes
    assert note.startswith("wandb is off: it is more than 2 steps behind")


def test_one_that_is_not_installed_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracker.MODULES, "wandb", "no_such_module_here")
    require(["tensorboard"])
    with pytest.raises(RecipeError, match=r"pip install 'strop\[wandb\]'"):
        require(["tensorboard", "wandb"])


def test_the_recipe_takes_one_or_several_or_none() -> None:
    assert TrainSection(report_to="none").report_to == ()  # type: ignore[arg-type]
    assert TrainSection(report_to="wandb").report_to == ("wandb",)  # type: ignore[arg-type]
    assert TrainSection(report_to=["wandb", "mlflow"]).report_to == ("wandb", "mlflow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tensorboard"):
        TrainSection(report_to="all")  # type: ignore[arg-type]


def test_tensorboard_s_events_can_be_read_back_and_a_lost_attempt_s_are_purged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import event_pb2  # type: ignore[attr-defined]

    for first in (0, 2):
        reporter = TrackingReporter(Reporter(), ["tensorboard"], lambda step: tracked(tmp_path, step))
        reporter.on_start(first, 4)
        for step in range(first + 1, 5):
            reporter.on_step(train_record(step))
        reporter.close()
    events = []
    for path in sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    losses = [(e.step, v.simple_value) for e in events for v in e.summary.value if v.tag == "train/loss"]
    assert sorted({step for step, _ in losses}) == [1, 2, 3, 4]
    assert any(e.session_log.status == 1 and e.step == 3 for e in events)  # from here on the second file counts
    assert any("learning_rate" in str(v.tensor) for e in events for v in e.summary.value)
