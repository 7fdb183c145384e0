"""One decoder on one thread: requests queue for it, and an answer that nobody waits for any more is not generated."""

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from strop.evaluation.generate import stream
from strop.model.lora import LoraAdapter
from strop.serving.requests import ApiError
from strop.terminal import one_line

MAX_WAITING = 64
"""Requests that may wait in the queue; further ones are told to come back later."""

_LONGEST_TOKEN = 10.0
"""Seconds to wait for the token in progress when the worker ends."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer; the last piece says why it ended.

    Attributes:
        num_tokens: Tokens generated so far, including the stop token.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """A prompt to answer.

    Attributes:
        deliver: Called in the worker's thread with each piece. The last call gets a piece that has a finish_reason, or
            an error.
        decode: Token ids -> text.
        cancelled: Once set, the answer ends at the next token and nothing more is delivered.
    """

    prompt_ids: list[int]
    tuned: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]
    deliver: Callable[[Piece | ApiError], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class GrowingText:
    """The text of an answer as its tokens arrive, up to the first stop text.

    Text that may still change is held back: a character whose last bytes are missing, and anything that may be the
    beginning of a stop text.

    Args:
        decode: Token ids -> text.
        stops: Texts that end the answer and are not part of it.

    Attributes:
        stopped: A stop text was found; nothing more is shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        self._shown = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Take a token and return the text that can be shown now, which is often empty."""
        self._ids.append(token)
        text = self._decode(self._ids)
        return "" if text.endswith("\ufffd") else self._show(text, is_last=False)

    def rest(self) -> str:
        """The text that was held back, once no more tokens follow."""
        return "" if self.stopped else self._show(self._decode(self._ids), is_last=True)

    def _show(self, text: str, is_last: bool) -> str:
        found = [place for place in (text.find(stop, self._shown) for stop in self._stops) if place >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(text) if is_last else len(text) - self._held_back(text)
        piece = text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _held_back(self, text: str) -> int:
        """Length of the longest suffix of the text that is also the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = range(min(longest, len(text) - self._shown), 0, -1)
        return next((n for n in ends if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


class GenerationWorker:
    """Answers jobs one after the other.

    Args:
        adapter: The tuned model; nothing else may use it while the worker runs.
        stop_ids: Tokens that end answers.
    """

    def __init__(self, adapter: LoraAdapter, stop_ids: frozenset[int]) -> None:
        self._adapter, self._stop_ids = adapter, stop_ids
        self._jobs: queue.Queue[GenerationJob | None] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: GenerationJob) -> None:
        """Queue a job.

        Raises:
            ApiError: 429; the queue is full.
        """
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise ApiError(429, f"{MAX_WAITING} requests are already waiting; try again later") from None

    def close(self) -> None:
        """End the current answer and all that are queued, at once. A signal handler may call this."""
        self._closing.set()

    def join(self) -> None:
        """Wait for the thread to end: torch should not be abandoned in the middle of a matrix product."""
        self.close()
        with suppress(queue.Full):  # the thread is still draining the queue; then it is left behind
            self._jobs.put_nowait(None)
            self._thread.join(_LONGEST_TOKEN)

    def _work(self) -> None:
        while job := self._jobs.get():
            if job.cancelled.is_set():
                continue
            try:
                if not self._closing.is_set():
                    self._answer(job)
                if self._closing.is_set():
                    job.deliver(ApiError(503, "the server is shutting down"))
            except Exception as error:  # the server must survive for the next request
                print(f"a request failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
                job.deliver(ApiError(500, f"the model failed on this request: {type(error).__name__}"))

    def _answer(self, job: GenerationJob) -> None:
        self._adapter.enable(job.tuned)
        stop_ids = self._stop_ids
        text, count, by_itself = GrowingText(job.decode, job.stops), 0, False
        tokens = stream(
            self._adapter.decoder,
            [job.prompt_ids],
            stop_ids,
            job.max_new_tokens,
            job.temperature,
            job.seed,
            top_p=job.top_p,
        )
        for _, token in tokens:
            if job.cancelled.is_set() or self._closing.is_set():
                return
            count += 1
            by_itself = token in stop_ids
            if by_itself:
                break
            if piece := text.add(token):
                job.deliver(Piece(piece, count))
            if text.stopped:
                break
        rest = text.rest()
        job.deliver(Piece(rest, count, "stop" if by_itself or text.stopped else "length"))
