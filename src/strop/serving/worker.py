"""One decoder, one thread: requests wait in line, and what nobody waits for any more is not generated."""

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from strop.data.template import Template
from strop.evaluation.generate import stream
from strop.model.lora import LoraAdapter
from strop.serving.requests import ApiError
from strop.serving.text import GrowingText

MAX_WAITING = 64
"""Requests that may wait; one more is told to come back."""

_LONGEST_TOKEN = 10.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer; the last piece says why it ends.

    Attributes:
        num_tokens: Generated so far, the stop token included.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt to answer.

    Attributes:
        deliver: Called in the worker's thread with each piece, and last with a piece that has a finish_reason or with
            an error.
        cancelled: Set it, and the answer ends at the next token without another word.
    """

    prompt_ids: list[int]
    tuned: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stops: tuple[str, ...]
    deliver: Callable[[Piece | ApiError], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Answers jobs one after the other.

    Args:
        adapter: The tuned model; nothing else may use it while the worker runs.
        template: Its stop tokens end answers.
    """

    def __init__(self, adapter: LoraAdapter, template: Template) -> None:
        self._adapter, self._template = adapter, template
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job in line.

        Raises:
            ApiError: 429; too many wait already.
        """
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise ApiError(429, f"{MAX_WAITING} requests wait already; try again later") from None

    def close(self) -> None:
        """End the answer that is being written, and those that wait, at once; may be called by a signal handler."""
        self._closing.set()

    def join(self) -> None:
        """Wait for the thread's end: torch does not like to be left in the middle of a product."""
        self.close()
        with suppress(queue.Full):  # it drains the line first, and is left behind
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
            except Exception as error:  # the next request shall find a server
                print(f"a request failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                job.deliver(ApiError(500, f"the model failed on this request: {type(error).__name__}"))

    def _answer(self, job: Job) -> None:
        self._adapter.enable(job.tuned)
        stop_ids = self._template.stop_ids
        text, count, by_itself = GrowingText(self._template.decode, job.stops), 0, False
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
