"""The live view of a run on a terminal: one panel, drawn in place, with notes and evaluations scrolling above it."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from strop.readable import clock
from strop.run.records import EvalRecord, TrainRecord
from strop.run.reporter import LineReporter, Output, Reporter, figures
from strop.run.waiting import Seen, waiting_in_place, waiting_on
from strop.terminal import Terminal, message

_WINDOW = 50
"""Steps that the time left is estimated from."""

_POINTS = 200
"""Steps that the sparkline can reach back: more than a terminal has columns for."""

_REDRAW_SECONDS = 0.1

_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def console_reporter(logging_steps: int, max_cost: float | None = None) -> Reporter:
    """A live panel if standard output is a terminal that can redraw, else a line every `logging_steps` steps.

    `NO_COLOR` is rich's to respect; the lines have no colour.
    """
    console = Terminal()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console, max_cost)
    return LineReporter(logging_steps, sys.stdout)


class LiveReporter(Reporter):
    """Bar, time left, loss curve and the last step's figures, at most ten times a second.

    Steps are drawn by the training's own thread, and what it waits for by another.
    """

    def __init__(self, console: Console, max_cost: float | None = None) -> None:
        self._output = Output(console.file)
        self._console = console
        self._panel = _Panel(max_cost)
        self._live = Live(self._panel, console=console, auto_refresh=False)
        self._drawn = 0.0

    def on_start(self, step: int, num_steps: int) -> None:
        """See `Reporter`."""
        self._panel.start(step, num_steps)
        with self._output.guarded() as stream:
            if stream is not None:
                self._live.start(refresh=True)

    def on_step(self, record: TrainRecord) -> None:
        """See `Reporter`."""
        now = time.monotonic()
        self._panel.add(record, now)
        if now - self._drawn > _REDRAW_SECONDS or record.step == self._panel.num_steps:
            self._drawn = now
            with self._output.guarded() as stream:
                if stream is not None:
                    self._live.refresh()

    def on_eval(self, record: EvalRecord) -> None:
        """See `Reporter`."""
        self._panel.held_out[record.step] = record.eval_loss
        self.note(f"step {record.step}: held-out loss {record.eval_loss:.4f}")

    def note(self, line: str) -> None:
        """See `Reporter`."""
        encoding = self._console.encoding
        with self._output.guarded() as stream:
            if stream is not None:
                text = message(line).encode(encoding, "backslashreplace").decode(encoding)
                self._console.print(text, highlight=False, markup=False)

    def waiting(self, what: str) -> AbstractContextManager[Seen]:
        """See `Reporter`. A line of the panel; below the notes while there is none."""
        if self._live.is_started:
            return waiting_in_place(what, self._draw_wait)
        return waiting_on(self._console, what)

    def _draw_wait(self, line: str | None) -> None:
        self._panel.waiting = line
        with self._output.guarded() as stream:
            if stream is not None:
                self._live.refresh()

    def close(self) -> None:
        """See `Reporter`."""
        with self._output.guarded() as stream:
            if stream is not None:
                self._live.stop()


class _Panel:
    """What the view knows, and how it looks on a console of some width."""

    def __init__(self, max_cost: float | None) -> None:
        self.num_steps = 0
        self.held_out: dict[int, float] = {}
        self.waiting: str | None = None
        self._max_cost = max_cost
        self._step = 0
        self._last: TrainRecord | None = None
        self._losses: deque[tuple[int, float]] = deque(maxlen=_POINTS)
        self._times: deque[float] = deque(maxlen=_WINDOW + 1)

    def start(self, step: int, num_steps: int) -> None:
        self._step, self.num_steps = step, num_steps
        self._times.append(time.monotonic())

    def add(self, record: TrainRecord, now: float) -> None:
        self._step, self._last = record.step, record
        self._losses.append((record.step, record.loss))
        self._times.append(now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = max(8, options.max_width - 4)
        lines = [self._progress(inner, options.ascii_only)]
        if self._last is not None:
            lines += [*self._curves(inner, options.ascii_only), *_flow(self._figures(self._last), inner)]
        if self.waiting:
            lines.append(Text(self.waiting, style="dim"))
        body = Text("\n", no_wrap=True, overflow="crop").join(lines)
        body.no_wrap, body.overflow = True, "crop"
        yield Panel(body, title="training", title_align="left", border_style="dim", width=min(options.max_width, 100))

    def _progress(self, width: int, ascii_only: bool) -> Text:
        width = min(width, 96)
        left = f"left {clock(self._seconds_left())}" if len(self._times) > 1 else "starting"
        ending = f" {self._step}/{self.num_steps}  {left}"
        room = max(0, width - len(ending))
        done = round(room * self._step / max(1, self.num_steps))
        bar = "#" if ascii_only else "━"
        rest = "-" if ascii_only else "─"
        return Text.assemble((bar * done, "green"), (rest * (room - done), "dim"), ending)

    def _seconds_left(self) -> float:
        steps = max(1, len(self._times) - 1)
        return (self._times[-1] - self._times[0]) / steps * (self.num_steps - self._step)

    def _curves(self, width: int, ascii_only: bool) -> list[Text]:
        """The loss of the last steps, a column each, and below it, on the same scale, the held-out losses."""
        head = len("held-out 0.0000 ")
        points = list(self._losses)[-max(1, min(width, 96) - head) :]
        first = points[0][0]
        marks = {step: loss for step, loss in self.held_out.items() if step >= first}
        scale = [loss for _, loss in points] + list(marks.values())
        blocks = _ASCII if ascii_only else _BLOCKS
        curve = sparkline([loss for _, loss in points], scale, blocks)
        lines = [Text.assemble(f"loss     {points[-1][1]:.4f} ", (curve, "cyan"))]
        if self.held_out:
            columns = sparkline([marks.get(step) for step, _ in points], scale, blocks)
            newest = self.held_out[max(self.held_out)]
            lines.append(Text.assemble(f"held-out {newest:.4f} ", (columns, "magenta")))
        return lines

    def _figures(self, last: TrainRecord) -> list[str]:
        if last.dollars is None:
            return figures(last)
        limit = "so far" if self._max_cost is None else f"of ${self._max_cost:.2f} at most"
        return [*figures(last), f"${last.dollars:.2f} {limit}"]


def sparkline(values: Sequence[float | None], scale: Sequence[float], blocks: str = _BLOCKS) -> str:
    """A character for each value, its height between the least and the greatest of `scale`; None is a blank.

    Args:
        values: In the order in which they are drawn.
        scale: What sets the lowest and the highest block; holds every value.
        blocks: Characters from low to high.
    """
    low, high = min(scale), max(scale)
    step = (high - low) / (len(blocks) - 1) or 1.0
    return "".join(" " if value is None else blocks[round((value - low) / step)] for value in values)


def _flow(figures: Sequence[str], width: int) -> list[Text]:
    """Figures side by side, in as many lines as the width asks for."""
    lines: list[str] = []
    for figure in figures:
        if lines and len(lines[-1]) + 2 + len(figure) <= min(width, 96):
            lines[-1] += f"  {figure}"
        else:
            lines.append(figure)
    return [Text(line) for line in lines]
