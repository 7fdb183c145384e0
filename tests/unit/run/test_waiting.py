"""What takes long says so: in place on a terminal, in a line now and then elsewhere, and never in what is piped."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from strop.run import waiting
from strop.run.live import LiveReporter
from strop.run.reporter import LineReporter, Reporter, reporter_for
from strop.run.waiting import waiting_by_lines, waiting_on


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times as fast."""
    for name in ("_AT_ONCE_ENOUGH", "_REDRAW", "_FIRST_LINE", "_RAREST_LINE"):
        monkeypatch.setattr(waiting, name, getattr(waiting, name) / 100)


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=80), stream


@pytest.mark.usefixtures("hurried")
def test_a_terminal_is_told_what_takes_long_and_how_far_it_is() -> None:
    console, stream = terminal()
    with waiting_on(console, "reading the rows") as seen:
        seen("2,048 rows")
        until(lambda: "reading the rows: 2,048 rows (" in stream.getvalue())
        until(lambda: stream.getvalue().count("reading") >= 3)  # kept up to date
        console.print("a note")  # above it
    assert "a note" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")  # and gone in the end
    assert stream.getvalue().rindex("\x1b[?25l") < stream.getvalue().rindex("\x1b[?25h")  # the cursor is there


def test_what_is_over_within_two_seconds_says_nothing() -> None:
    console, stream = terminal()
    with waiting_on(console, "reading the rows") as seen:
        seen("1 row")
    assert stream.getvalue() == ""
    assert waiting._AT_ONCE_ENOUGH == 2.0
    assert waiting._FIRST_LINE == 10.0


@pytest.mark.usefixtures("hurried")
def test_a_log_gets_lines_that_become_rare() -> None:
    lines: list[tuple[float, str]] = []
    began = time.monotonic()
    with waiting_by_lines("answering", lambda line: lines.append((time.monotonic() - began, line))):
        until(lambda: len(lines) == 3)
    assert all(re.fullmatch(r"answering \(\d+s\)", line) for _, line in lines)
    for (at, _), due in zip(lines, (0.1, 0.3, 0.7), strict=True):
        assert at >= due


@pytest.mark.usefixtures("hurried")
def test_an_error_inside_ends_the_line_and_is_raised() -> None:
    console, stream = terminal()

    def interrupted() -> None:
        with waiting_on(console, "reading"):
            until(lambda: "reading" in stream.getvalue())
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert threading.active_count() == before
    size = len(stream.getvalue())
    time.sleep(0.05)
    assert len(stream.getvalue()) == size


class Gone(io.StringIO):
    tried = False

    def write(self, text: str) -> int:
        self.tried = True
        raise OSError(5, "Input/output error")


@pytest.mark.usefixtures("hurried")
def test_a_terminal_that_is_gone_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Gone()
    with waiting_on(Console(file=stream, force_terminal=True), "reading"):
        until(lambda: stream.tried)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("hurried")
def test_the_panel_of_a_run_has_the_line_while_it_waits() -> None:
    console, stream = terminal()
    live = LiveReporter(console)
    with live.waiting("reading the rows"):
        until(lambda: "reading the rows" in stream.getvalue())
    live.on_start(0, 2)
    with live.waiting("computing the first step"):
        until(lambda: "computing the first step" in stream.getvalue())
    stream.truncate(0)
    live.close()
    assert "computing" not in stream.getvalue()
    assert "0/2" in stream.getvalue()


@pytest.mark.usefixtures("hurried")
def test_a_run_s_log_has_the_line_and_silence_stays_silent() -> None:
    stream = io.StringIO()
    with LineReporter(1, stream).waiting("computing the first step"):
        until(lambda: "computing the first step (" in stream.getvalue())
    with Reporter().waiting("computing the first step") as seen:
        seen("1 row")


def test_python_prints_lines_unless_it_is_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    own = Reporter()
    assert reporter_for(own, quiet=False) is own
    assert reporter_for(own, quiet=True) is own
    reporter_for(None, quiet=True).note("a note")
    assert capsys.readouterr().out == ""
    reporter_for(None, quiet=False).note("a note")
    assert capsys.readouterr().out == "a note\n"
