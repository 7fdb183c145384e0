"""One decoder on one thread: requests join its running batch as they arrive, and leave it when nobody listens."""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from strop.evaluation.pool import Pool, Prompt
from strop.model.lora import LoraAdapter
from strop.serving.growing import GrowingText
from strop.serving.requests import ApiError
from strop.terminal import one_line

MAX_WAITING = 64
"""Requests that may wait for a slot; further ones are told to come back later."""

_CAPACITY = 2048
"""Tokens of a slot as long as no request needs more: for SmolLM2 on a CPU, room for 21 requests at once."""

_PREFILL_TOKENS = 512
"""Most prompt tokens read at a time, unless a single prompt has more: while they are read, the other answers wait. On
two busy CPU cores, 512 of SmolLM2 take about two seconds."""

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


@dataclass(frozen=True, slots=True, eq=False)
class GenerationJob:
    """A prompt to answer.

    Attributes:
        prompt: Its tokens, the answer's limit and sampling, and which of the two models is asked.
        stops: Texts that end the answer.
        decode: Token ids -> text.
        deliver: Called in the worker's thread with each piece. The last call gets a piece that has a finish_reason, or
            an error.
        cancelled: Once set, the answer ends at the next token and nothing more is delivered.
    """

    prompt: Prompt
    stops: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]
    deliver: Callable[[Piece | ApiError], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Answer:
    """A job that is being answered."""

    def __init__(self, job: GenerationJob) -> None:
        self.job, self._count = job, 0
        self._text = GrowingText(job.decode, job.stops)

    def take(self, token: int, is_stop: bool) -> bool:
        """Deliver what the next token adds; whether it was the last."""
        self._count += 1
        piece = "" if is_stop else self._text.add(token)
        if is_stop or self._text.stopped or self._count == self.job.prompt.max_new_tokens:
            reason: Literal["stop", "length"] = "stop" if is_stop or self._text.stopped else "length"
            self.job.deliver(Piece(piece + self._text.rest(), self._count, reason))
            return True
        if piece:
            self.job.deliver(Piece(piece, self._count))
        return False


class GenerationWorker:
    """Answers jobs, as many at once as its memory allows, each as if it were alone.

    Args:
        adapter: The tuned model; nothing else may use it while the worker runs.
        stop_ids: Tokens that end answers.
    """

    def __init__(self, adapter: LoraAdapter, stop_ids: frozenset[int]) -> None:
        self._stop_ids = stop_ids
        self._pool = Pool(
            adapter.decoder,
            stop_ids,
            adapter,
            capacity=_CAPACITY,
            prefill_tokens=_PREFILL_TOKENS,
            is_wanted=self._is_wanted,
        )
        self._arrived = SimpleQueue[GenerationJob | None]()
        self._answers: dict[Prompt, _Answer] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def check_room(self) -> None:
        """Raise ApiError 429 if too many requests wait already."""
        if self._arrived.qsize() + self._pool.num_waiting >= MAX_WAITING:
            raise ApiError(429, f"{MAX_WAITING} requests are already waiting; try again later")

    def submit(self, job: GenerationJob) -> None:
        """Let a job join the batch as soon as there is room.

        Raises:
            ApiError: 429; too many wait already. 503; the worker has been closed.
        """
        if self._closing.is_set():
            raise _shutting_down()
        self.check_room()
        self._arrived.put(job)

    def close(self) -> None:
        """End all answers at once, also those that wait. A signal handler may call this."""
        self._closing.set()
        self._arrived.put(None)

    def join(self) -> None:
        """Wait for the thread to end: torch should not be abandoned in the middle of a matrix product."""
        self.close()
        self._thread.join(_LONGEST_TOKEN)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._receive()
            self._drop_cancelled()
            for prompt, outcome in self._pool.advance():
                self._pass_on(self._answers[prompt], outcome)
        self._receive()
        for answer in list(self._answers.values()):
            self._end(answer, _shutting_down())

    def _receive(self) -> None:
        """Take the jobs that have arrived; with nothing else to do, wait for one."""
        is_idle = self._pool.is_idle and not self._closing.is_set()
        with suppress(Empty):
            while True:
                job = self._arrived.get(block=is_idle)
                is_idle = False
                if job is not None:
                    self._answers[job.prompt] = _Answer(job)
                    self._pool.add(job.prompt)

    def _drop_cancelled(self) -> None:
        for answer in [answer for answer in self._answers.values() if answer.job.cancelled.is_set()]:
            self._end(answer, None)

    def _pass_on(self, answer: _Answer, outcome: int | Exception) -> None:
        """Deliver a token, or what went wrong: with this answer alone, the others go on."""
        if not self._is_wanted(answer.job.prompt):
            return  # it ends before the next token
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if answer.take(outcome, outcome in self._stop_ids):
                self._end(answer, None)
        except Exception as error:
            print(f"a request failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
            self._end(answer, ApiError(500, f"the model failed on this request: {type(error).__name__}"))

    def _is_wanted(self, prompt: Prompt) -> bool:
        return not (self._closing.is_set() or self._answers[prompt].job.cancelled.is_set())

    def _end(self, answer: _Answer, error: ApiError | None) -> None:
        self._pool.remove(answer.job.prompt)
        del self._answers[answer.job.prompt]
        if error is not None:
            answer.job.deliver(error)


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down")
