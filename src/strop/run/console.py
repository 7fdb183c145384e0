"""What a person sees while a run goes on: a live bar on a terminal, plain lines anywhere else.

Nothing here can stop a run. Where the output goes away (`strop train ... | head`, a closed terminal, a full
disk behind a redirection), one line on standard error says so and training goes on; metrics.jsonl has it all.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_WINDOW = 50
"""Steps that the time left is estimated from: enough to be steady, few enough to forget slow first ones."""


class Reporter:
    """Told of everything that happens in a run. This one says nothing; the others override what they show."""

    def on_start(self, step: int, num_steps: int) -> None:
        """Training begins, or goes on after `step`."""

    def on_step(self, record: Mapping[str, Any]) -> None:
        """A step is done; the record is the one in metrics.jsonl."""

    def on_eval(self, step: int, loss: float) -> None:
        """The held-out rows were evaluated."""

    def on_save(self, step: int) -> None:
        """A checkpoint is in place."""

    def note(self, line: str) -> None:
        """Something was chosen or happened that a person should know."""

    def close(self) -> None:
        """Training has ended."""


class LineReporter(Reporter):
    """One line for each step that is due: for logs, pipes and cloud consoles."""

    def __init__(self, every: int, stream: IO[str]) -> None:
        self._every = max(1, every)
        self._output = _Output(stream)
        self._num_steps = 0
        self._times: deque[float] = deque(maxlen=_WINDOW + 1)

    def on_start(self, step: int, num_steps: int) -> None:
        """See `Reporter`."""
        self._num_steps = num_steps
        self._times.append(time.monotonic())

    def on_step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter`."""
        step, times = record["step"], self._times
        times.append(time.monotonic())
        if step % self._every == 0 or step == self._num_steps:
            left = (times[-1] - times[0]) / max(1, len(times) - 1) * (self._num_steps - step)
            self.note(f"step {step}/{self._num_steps}  {describe(record)}  left {clock(left)}")

    def on_eval(self, step: int, loss: float) -> None:
        """See `Reporter`."""
        self.note(f"step {step}/{self._num_steps}  held-out loss {loss:.4f}")

    def on_save(self, step: int) -> None:
        """See `Reporter`."""
        self.note(f"step {step}/{self._num_steps}  checkpoint saved")

    def note(self, line: str) -> None:
        """See `Reporter`."""
        with self._output.guarded() as stream:
            if stream is not None:
                # A log in ASCII must not end a run because a file's name has an accent.
                encoding = getattr(stream, "encoding", None) or "utf-8"
                print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class BarReporter(Reporter):
    """A live bar with the last step's figures beside it; evaluations stay above it as lines."""

    def __init__(self, console: Console) -> None:
        self._output = _Output(console.file)
        self._num_steps = 0
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            auto_refresh=False,  # no thread: an error in one could not be caught here
        )
        self._task = self._progress.add_task("train", total=None, figures="")
        self._drawn = 0.0

    def on_start(self, step: int, num_steps: int) -> None:
        """See `Reporter`."""
        self._num_steps = num_steps
        with self._output.guarded() as stream:
            if stream is not None:
                self._progress.update(self._task, total=num_steps, completed=step)
                self._progress.start()

    def on_step(self, record: Mapping[str, Any]) -> None:
        """See `Reporter`. Drawn at most ten times a second."""
        with self._output.guarded() as stream:
            if stream is not None:
                due = time.monotonic() - self._drawn > 0.1 or record["step"] == self._num_steps
                self._progress.update(self._task, completed=record["step"], figures=_brief(record), refresh=due)
                self._drawn = time.monotonic() if due else self._drawn

    def on_eval(self, step: int, loss: float) -> None:
        """See `Reporter`."""
        self.note(f"step {step}: held-out loss {loss:.4f}")

    def note(self, line: str) -> None:
        """See `Reporter`."""
        with self._output.guarded() as stream:
            if stream is not None:
                self._progress.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        """See `Reporter`."""
        with self._output.guarded() as stream:
            if stream is not None:
                self._progress.stop()


def console_reporter(logging_steps: int) -> Reporter:
    """A bar if standard output is a terminal that can redraw, else a line every `logging_steps` steps.

    `NO_COLOR` is rich's to respect; the lines have no colour.
    """
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return BarReporter(console)
    return LineReporter(logging_steps, sys.stdout)


def describe(record: Mapping[str, Any]) -> str:
    """A step's figures on one line."""
    line = (
        f"loss {record['loss']:.4f}  lr {record['learning_rate']:.1e}  grad {record['grad_norm']:.2f}  "
        f"{record['tokens_per_second']:,.0f} tok/s  {record['samples_per_second']:.1f} samples/s"
    )
    memory = record.get("peak_memory_gib")
    line = line if memory is None else f"{line}  {memory:.1f} GiB"
    return f"{line}  ${record['dollars']:.2f} so far" if "dollars" in record else line


def _brief(record: Mapping[str, Any]) -> str:
    """What fits beside a bar on 80 columns."""
    line = f"loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tok/s"
    return f"{line}  ${record['dollars']:.2f}" if "dollars" in record else line


def clock(seconds: float) -> str:
    """A duration as a person reads it: 45s, 12m05s, 3h20m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class _Output:
    """A stream that may go away. After its first failure it is None, and nobody tries again."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    @contextmanager
    def guarded(self) -> Iterator[IO[str] | None]:
        """The stream, or None once it has gone; a failure to write inside the block is dealt with here."""
        try:
            yield self._stream
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            broken, self._stream = self._stream, None
            _discard(broken)
            with suppress(OSError, ValueError):
                print(
                    f"strop: standard output has gone ({error}); training goes on, see metrics.jsonl",
                    file=sys.stderr,
                    flush=True,
                )


def _discard(stream: IO[str] | None) -> None:
    """Point a broken stream at /dev/null: what it buffers would fail again at exit, and turn 0 into 120."""
    with suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
