"""From a run to its trackers: a bounded queue and a thread each, so that none can stop or slow the training."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

from strop.run.records import EvalRecord, Sample, TrainRecord
from strop.run.reporter import Reporter
from strop.run.trackers.tracker import TrackedRun, Tracker, open_tracker
from strop.run.waiting import Seen

_HELD = 10_000
"""Steps that wait for a slow tracker; one that is further behind than that is off."""

_END_SECONDS = 10.0
"""What all trackers together may take at the end of a run."""

Open = Callable[[str, TrackedRun], Tracker]


class TrackingReporter(Reporter):
    """Passes everything on to the console, and figures to the trackers.

    What a tracker raises becomes one note, and the tracker is off; the note is made by the training's thread.

    Args:
        console: What a person sees.
        names: Trackers, as `train.report_to` has them.
        run: Asked for once training begins at a step.
        seen: The last step of each kind, train and eval, that earlier attempts recorded. Steps up to it are in the
            trackers; made again they have the same figures, and are not entered twice.
        open_run: Begins a run in a tracker.
    """

    def __init__(
        self,
        console: Reporter,
        names: Sequence[str],
        run: Callable[[int], TrackedRun],
        seen: Mapping[str, int] | None = None,
        open_run: Open = open_tracker,
    ) -> None:
        self._console, self._names, self._run = console, names, run
        self._seen, self._open = seen or {}, open_run
        self._feeds: list[_Feed] = []

    def on_start(self, step: int, num_steps: int) -> None:
        """See `Reporter`."""
        run = self._run(step)
        self._feeds = [_Feed(name, run, self._open) for name in self._names]
        self._console.on_start(step, num_steps)

    def on_step(self, record: TrainRecord) -> None:
        """See `Reporter`."""
        figures = {key: value for key, value in asdict(record).items() if key != "step" and value is not None}
        self._pass_on(record, {f"train/{key}": value for key, value in figures.items()})
        self._console.on_step(record)

    def on_eval(self, record: EvalRecord) -> None:
        """See `Reporter`. At the end of a run this is its final evaluation."""
        self._pass_on(record, {"eval/loss": record.eval_loss})
        self._console.on_eval(record)

    def on_samples(self, samples: Sequence[Sample]) -> None:
        """See `Reporter`. Texts stay in samples.jsonl."""
        self._console.on_samples(samples)

    def on_save(self, step: int) -> None:
        """See `Reporter`."""
        self._console.on_save(step)

    def note(self, line: str) -> None:
        """See `Reporter`. Notes stay here: they name this machine's files."""
        self._console.note(line)

    def waiting(self, what: str) -> AbstractContextManager[Seen]:
        """See `Reporter`."""
        return self._console.waiting(what)

    def close(self) -> None:
        """See `Reporter`. Waits some seconds for trackers that are behind."""
        deadline = time.monotonic() + _END_SECONDS
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.wait(deadline)
        self._tell()
        self._console.close()

    def _pass_on(self, record: TrainRecord | EvalRecord, values: Mapping[str, float]) -> None:
        if record.step > self._seen.get(record.kind, -1):
            for feed in self._feeds:
                feed.put(record.step, values)
        self._tell()

    def _tell(self) -> None:
        for feed in [feed for feed in self._feeds if feed.fault]:
            self._console.note(f"{feed.name} is off: {feed.fault}. Training continues; metrics.jsonl has everything")
            self._feeds.remove(feed)


class _Feed:
    """One tracker, used by its own thread alone."""

    def __init__(self, name: str, run: TrackedRun, open_run: Open) -> None:
        self.name, self.fault = name, ""
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_HELD)
        # A daemon: one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, args=(run, open_run), name=f"strop-{name}", daemon=True)
        self._thread.start()

    def put(self, step: int, values: Mapping[str, float]) -> None:
        """Never waits."""
        try:
            self._queue.put_nowait((step, values))
        except queue.Full:
            self.fault = self.fault or f"it is more than {_HELD:,} steps behind"

    def finish(self) -> None:
        """No more steps come."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self.fault = self.fault or f"it is more than {_HELD:,} steps behind"

    def wait(self, deadline: float) -> None:
        """Until it has taken everything in, or the deadline."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.fault = self.fault or f"it did not finish within {_END_SECONDS:g} s"

    def _work(self, run: TrackedRun, open_run: Open) -> None:
        try:
            tracker = open_run(self.name, run)
            while (entry := self._queue.get()) is not None:
                tracker.log(*entry)
            tracker.close()
        except BaseException as error:  # anything a library may raise, SystemExit included
            lines = str(error).strip().splitlines()
            self.fault = self.fault or f"{type(error).__name__}{f': {lines[0][:200]}' if lines else ''}"
