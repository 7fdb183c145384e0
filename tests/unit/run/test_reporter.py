"""The lines and the bar, and that neither can end a run."""

import io
import itertools
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from run_folders import train_record
from strop.run.live import LiveReporter, console_reporter
from strop.run.records import EvalRecord, TrainRecord
from strop.run.reporter import LineReporter, Reporter, describe
from waiting import PATIENCE

STEPS = 60


def test_a_billed_run_s_lines_and_bar_have_the_dollars_so_far() -> None:
    assert describe(record(1, dollars=1.234)).endswith("samples/s  $1.23 so far")
    assert "$" not in describe(record(1))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=110)
    bar = LiveReporter(console)
    bar.on_start(0, 1)
    bar.on_step(record(1, dollars=1.234))
    bar.close()
    assert "$1.23" in stream.getvalue()


def record(step: int, **figures: Any) -> TrainRecord:
    return train_record(step, loss=1.23456, **figures)


def run_whole(reporter: Any, first: int = 0) -> None:
    reporter.note("a note")
    reporter.on_start(first, STEPS)
    for step in range(first + 1, STEPS + 1):
        reporter.on_step(record(step))
        if step % 30 == 0:
            reporter.on_eval(EvalRecord(step, 1.5))
            reporter.on_save(step)
    reporter.close()


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by two seconds each time it is read."""
    seconds = itertools.count(0.0, 2.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))


@pytest.mark.usefixtures("tick")
def test_a_line_has_the_figures_of_its_step() -> None:
    stream = io.StringIO()
    run_whole(LineReporter(10, stream))
    lines = stream.getvalue().splitlines()
    want = "step 10/60  loss 1.2346  lr 2.0e-04  grad 0.52  1,234 tok/s  12.3 samples/s  left 1m40s"
    assert lines[:2] == ["a note", want]
    assert [line.split()[1] for line in lines if "tok/s" in line] == [f"{n}/60" for n in range(10, 61, 10)]
    assert "step 30/60  held-out loss 1.5000" in lines
    assert "step 30/60  checkpoint saved" in lines


def test_the_last_step_is_always_shown() -> None:
    stream = io.StringIO()
    run_whole(LineReporter(1000, stream))
    assert "step 60/60  loss" in stream.getvalue()


@pytest.mark.usefixtures("tick")
def test_a_resumed_run_estimates_from_its_own_steps() -> None:
    stream = io.StringIO()
    run_whole(LineReporter(1, stream), first=50)
    assert "step 51/60" in stream.getvalue()
    assert "left 18s" in stream.getvalue().splitlines()[1]


def terminal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[Console, io.StringIO]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=160), stream


def test_the_bar_shows_the_last_step_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    console, stream = terminal(monkeypatch)
    run_whole(LiveReporter(console))
    assert "60/60" in stream.getvalue()
    assert "1,234 tok/s" in stream.getvalue()
    assert "step 30: held-out loss 1.5000" in stream.getvalue()


@pytest.mark.parametrize("no_color", [True, False])
def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    console, stream = terminal(monkeypatch, **({"NO_COLOR": "1"} if no_color else {}))
    run_whole(LiveReporter(console))
    coloured = any(f"\x1b[{code}" in stream.getvalue() for code in ("38;", "31m", "32m", "35m", "36m"))
    assert coloured is not no_color


class Broken(io.StringIO):
    """Takes a number of writes, then none."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("writes", range(0, 24, 3))
def test_an_output_that_goes_away_ends_nothing_and_is_told_once(
    capsys: pytest.CaptureFixture[str], writes: int
) -> None:
    run_whole(LineReporter(1, Broken(writes)))
    assert capsys.readouterr().err.count("training continues") == 1
    run_whole(LiveReporter(Console(file=Broken(min(writes, 2)), force_terminal=True, width=120)))
    assert capsys.readouterr().err.count("training continues") == 1


def test_a_closed_output_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    run_whole(LineReporter(1, stream))


def test_a_name_that_the_log_cannot_encode_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    LineReporter(1, stream).note("caf\u00e9.jsonl")
    stream.seek(0)
    assert stream.buffer.read() == b"caf\\xe9.jsonl\n"


def test_silence() -> None:
    run_whole(Reporter())


_SCRIPT = """
import sys
sys.path[:0] = {path!r}
from strop.run.live import console_reporter
from test_reporter import run_whole
reporter = console_reporter(1)
print("chosen", flush=True, file=sys.stderr)
sys.stdin.readline()
run_whole(reporter)
print(type(reporter).__name__, "survived", file=sys.stderr)
print("afterwards " * 20000)  # the summary of a finished run
"""


def script() -> list[str]:
    import strop

    assert strop.__file__ is not None
    here = Path(__file__)
    path = [str(Path(strop.__file__).parents[1]), str(here.parent), str(here.parents[2] / "support")]
    return [sys.executable, "-c", _SCRIPT.format(path=path)]


def test_a_reader_that_leaves_does_not_change_the_exit_code() -> None:
    process = subprocess.Popen(script(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert b"LineReporter survived" in errors
    assert errors.count(b"training continues") == 1
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


@pytest.mark.parametrize(("term", "want"), [("xterm", b"LiveReporter"), ("dumb", b"LineReporter")])
def test_a_terminal_gets_the_bar_unless_it_cannot_redraw(term: str, want: bytes) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        script(),
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": term},
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"chosen\n"
    os.close(theirs)
    os.close(ours)  # the terminal is closed, too: what is written to it fails
    _, errors = process.communicate(b"\n", timeout=PATIENCE)
    assert want + b" survived" in errors, errors
    assert process.returncode == 0
    assert errors.count(b"training continues") == 1


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(console_reporter(1), LineReporter)
