"""The panel at the widths and on the terminals that people have, and what it costs."""

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from run_folders import train_record
from strop.run.live import LiveReporter, sparkline
from strop.run.records import EvalRecord, Sample, TrainRecord


def record(step: int, **figures: Any) -> TrainRecord:
    return train_record(step, loss=2.0 / step, **figures)


def console(width: int, **more: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, record=True, **more)


def shown(to: Console, **more: Any) -> list[str]:
    """The panel as it stands at the end of twenty steps, a line each."""
    live = LiveReporter(to, max_cost=5.0)
    live.on_start(0, 20)
    for step in range(1, 21):
        live.on_step(record(step, **more))
        if step % 5 == 0:
            live.on_eval(EvalRecord(step, 2.5 / step))
    live.close()
    to.export_text()  # forget what was drawn on the way
    to.print(live._panel)
    return to.export_text().splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_it_fits_and_nothing_of_it_is_cut_away(width: int) -> None:
    lines = shown(console(width), dollars=1.234, peak_memory_gib=3.14)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    if width >= 40:
        for figure in ("20/20", "left 0s", "0.1000", "lr 2.0e-04", "grad 0.52", "1,234 tok/s", "12.3 samples/s"):
            assert figure in text, figure
        assert "$1.23 of $5.00 at most" in text
        assert "3.1 GiB" in text


def test_the_curve_falls_and_the_held_out_losses_stand_below_their_steps() -> None:
    lines = shown(console(80))
    train = next(line for line in lines if "loss" in line).rstrip(" │").partition("0.1000 ")[2]
    held_out = next(line for line in lines if "held-out" in line).rstrip(" │").partition("0.1250 ")[2]
    assert (train[0], train[-1], len(train)) == ("█", "▁", 20)
    assert [i + 1 for i, block in enumerate(held_out) if block != " "] == [5, 10, 15, 20]


def test_a_sparkline_has_one_scale_and_survives_equal_values() -> None:
    assert sparkline([1.0, None, 2.0], [1.0, 2.0, 3.0], "abc") == "a b"
    assert sparkline([1.0, 1.0], [1.0]) == "▁▁"


def test_an_ascii_terminal_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    live = LiveReporter(Console(file=stream, force_terminal=True, width=80))
    live.on_start(0, 2)
    live.note("caf\u00e9.jsonl")
    for step in (1, 2):
        live.on_step(record(step))
    live.close()
    text = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"caf\\xe9.jsonl" in text
    assert b"2/2" in text


def test_a_terminal_that_is_resized_gets_the_new_width() -> None:
    to = console(100)
    live = LiveReporter(to)
    live.on_start(0, 20)
    for width in (100, 40, 9, 80):
        to.width = width
        live._drawn = 0.0
        live.on_step(record(1))
    live.close()
    assert "1/20" in to.export_text()


def test_it_draws_at_most_ten_times_a_second_and_costs_less_than_a_millisecond_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock on which a step takes a millisecond, and by the processor's."""
    to, now = console(100), [0.0]
    monkeypatch.setattr("strop.run.live.time", SimpleNamespace(monotonic=lambda: now[0]))
    live = LiveReporter(to)
    live.on_start(0, 5000)
    began = time.process_time()
    for step in range(1, 3001):
        now[0] += 1e-3
        live.on_step(record(step))
    used = time.process_time() - began
    live.close()
    assert used / 3000 < 1e-3
    drawings = to.file.getvalue().count("/5000")  # type: ignore[attr-defined]
    assert 25 <= drawings <= 33


def test_a_sample_cannot_move_the_cursor_or_take_a_second_line() -> None:
    to = console(200)
    LiveReporter(to).on_samples([Sample(3, "a:1", "What?", "x", "evil\x1b[2J\x9b\r\nline [red]" + "y" * 200)])
    (line,) = to.export_text().splitlines()
    assert line.startswith("step 3: What? -> evil [2J line [red]")
    assert line.endswith("yyyy...yyyyyyyyyyyyyyyyyyyyyy")
    assert "\x1b[2J" not in to.file.getvalue()  # type: ignore[attr-defined]
