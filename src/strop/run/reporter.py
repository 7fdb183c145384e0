"""What a person sees while a run goes on: a live view on a terminal (live.py), plain lines anywhere else.

Nothing here can stop a run. Where the output goes away (`strop train ... | head`, a closed terminal, a full
disk behind a redirection), one line on standard error says so and training goes on; metrics.jsonl has it all.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any

from strop.run.output import Output
from strop.run.samples import Sample

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

    def on_samples(self, samples: Sequence[Sample]) -> None:
        """Held-out questions were answered by the model as it stands."""
        for sample in samples:
            self.note(f"step {sample.step}: {_brief(sample.question, 32)} -> {_brief(sample.text, 40)}")

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
        self._output = Output(stream)
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


def describe(record: Mapping[str, Any]) -> str:
    """A step's figures on one line."""
    line = (
        f"loss {record['loss']:.4f}  lr {record['learning_rate']:.1e}  grad {record['grad_norm']:.2f}  "
        f"{record['tokens_per_second']:,.0f} tok/s  {record['samples_per_second']:.1f} samples/s"
    )
    memory = record.get("peak_memory_gib")
    line = line if memory is None else f"{line}  {memory:.1f} GiB"
    return f"{line}  ${record['dollars']:.2f} so far" if "dollars" in record else line


def _brief(text: str, length: int) -> str:
    """The beginning of a text on one line, without what would move a terminal's cursor: a model may write anything."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def clock(seconds: float) -> str:
    """A duration as a person reads it: 45s, 12m05s, 3h20m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
