"""What a person sees while a run trains: a live view on a terminal (live.py), plain lines anywhere else.

Nothing here can stop a run. If the output goes away (`strop train ... | head`, a closed terminal, a full disk behind a
redirection), one line on standard error says so and training continues; metrics.jsonl has everything.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import IO

from strop.readable import clock
from strop.run.records import EvalRecord, Sample, TrainRecord
from strop.run.waiting import Seen, waiting_by_lines
from strop.terminal import message

_WINDOW = 50
"""Steps that the time left is estimated from: enough to be steady, few enough to forget slow first ones."""


class Reporter:
    """Told of everything that happens in a run. This one prints nothing; the others override what they show."""

    def on_start(self, step: int, num_steps: int) -> None:
        """Training begins, or resumes after `step`."""

    def on_step(self, record: TrainRecord) -> None:
        """A step is done; the record is the one in metrics.jsonl."""

    def on_eval(self, record: EvalRecord) -> None:
        """The held-out rows were evaluated."""

    def on_samples(self, samples: Sequence[Sample]) -> None:
        """The model has answered held-out questions."""
        for sample in samples:
            self.note(f"step {sample.step}: {brief(sample.question, 32)} -> {brief(sample.text, 48)}")

    def on_save(self, step: int) -> None:
        """A checkpoint is in place."""

    def note(self, line: str) -> None:
        """Something was chosen or happened that a person should know."""

    def waiting(self, what: str) -> AbstractContextManager[Seen]:
        """Within this context something takes long: `what`, such as `reading the rows`.

        Returns:
            A context that gives a function to say how far it has come, such as `12,000 rows`.
        """
        return nullcontext(lambda seen: None)

    def close(self) -> None:
        """Training has ended."""


def reporter_for(reporter: Reporter | None, quiet: bool, every: int = 1) -> Reporter:
    """What a function of Python's tells: the caller's own reporter, nobody, or plain lines on standard output."""
    return reporter or (Reporter() if quiet else LineReporter(every, sys.stdout))


class Output:
    """A stream that may go away. After its first failure it is not used again."""

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
                    f"strop: standard output is gone ({error}); training continues, see metrics.jsonl",
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


class LineReporter(Reporter):
    """One line for each step that is due: for logs, pipes and cloud consoles."""

    def __init__(self, every: int, stream: IO[str]) -> None:
        self._every = max(1, every)
        self._output = Output(stream)
        self._num_steps = 0
        self._times: deque[float] = deque(maxlen=_WINDOW + 1)

    def on_start(self, step: int, num_steps: int) -> None:
        """See `Reporter`."""
        self._num_steps = num_steps
        self._times.append(time.monotonic())

    def on_step(self, record: TrainRecord) -> None:
        """See `Reporter`."""
        step, times = record.step, self._times
        times.append(time.monotonic())
        if step % self._every == 0 or step == self._num_steps:
            left = (times[-1] - times[0]) / max(1, len(times) - 1) * (self._num_steps - step)
            self.note(f"step {step}/{self._num_steps}  {describe(record)}  left {clock(left)}")

    def on_eval(self, record: EvalRecord) -> None:
        """See `Reporter`."""
        self.note(f"step {record.step}/{self._num_steps}  held-out loss {record.eval_loss:.4f}")

    def on_save(self, step: int) -> None:
        """See `Reporter`."""
        self.note(f"step {step}/{self._num_steps}  checkpoint saved")

    def waiting(self, what: str) -> AbstractContextManager[Seen]:
        """See `Reporter`."""
        return waiting_by_lines(what, self.note)

    def note(self, line: str) -> None:
        """See `Reporter`."""
        with self._output.guarded() as stream:
            if stream is not None:
                # A log in ASCII must not end a run because a file's name has an accent.
                encoding = getattr(stream, "encoding", None) or "utf-8"
                print(message(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def figures(record: TrainRecord) -> list[str]:
    """A step's figures but for its loss and cost, each with its unit."""
    memory = record.peak_memory_gib
    return [
        f"lr {record.learning_rate:.1e}",
        f"grad {record.grad_norm:.2f}",
        f"{record.tokens_per_second:,.0f} tok/s",
        f"{record.samples_per_second:.1f} samples/s",
        *([] if memory is None else [f"{memory:.1f} GiB"]),
    ]


def describe(record: TrainRecord) -> str:
    """A step's figures on one line."""
    cost = [] if record.dollars is None else [f"${record.dollars:.2f} so far"]
    return "  ".join([f"loss {record.loss:.4f}", *figures(record), *cost])


def brief(text: str, length: int) -> str:
    """Both ends of a text on one line: the figure that an answer comes to is often its last word.

    It has nothing that would move a terminal's cursor: a model may write anything.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    end = (length - 3) // 2
    return line if len(line) <= length else f"{line[: length - 3 - end]}...{line[-end:]}"
