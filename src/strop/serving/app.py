"""The endpoint as an ASGI application: its routes, and errors in OpenAI's format."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from strop.data.template import Template
from strop.evaluation.pool import Prompt
from strop.evaluation.sampling import Sampling
from strop.serving.answers import AnswerReader
from strop.serving.markup import Markup
from strop.serving.prompting import chat_prompt, check_length, read_question, room, text_prompt
from strop.serving.requests import ApiError, ChatRequest, CompletionRequest, GenerationRequest, parse
from strop.serving.responses import Answer, failed_event
from strop.serving.server import Guard
from strop.serving.worker import GenerationJob, GenerationWorker, Piece

BASE = "base"
"""The model name under which the endpoint answers without the adapter."""

_READERS = 2
"""Threads that read requests. More of them would only take time from the model."""

Body = TypeVar("Body", bound=GenerationRequest)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Served:
    """What the endpoint answers with.

    Attributes:
        name: The tuned model's name.
        created: When the run began, in seconds since 1970.
        max_positions: The most tokens of prompt and answer together.
        vocabulary: All token ids are below this.
        max_new_tokens: The longest answer if the request sets no limit.
    """

    name: str
    created: int
    worker: GenerationWorker
    template: Template
    max_positions: int
    vocabulary: int
    max_new_tokens: int


def build_app(served: Served, guard: Guard) -> Starlette:
    """Build the application; its worker is already running."""
    endpoint = _Endpoint(served, guard)
    return Starlette(
        routes=[
            Route("/health", endpoint.health),
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name}", endpoint.model),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
            Route("/v1/completions", endpoint.complete, methods=["POST"]),
        ],
        exception_handlers={ApiError: _as_json, HTTPException: _http_as_json},
    )


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.to_json(), error.status, {"Retry-After": "5"} if error.status == 429 else None)


async def _http_as_json(request: Request, error: Exception) -> Response:
    """Errors of the router itself: 404 and 405."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, message).to_json(), error.status_code, error.headers)


class _Endpoint:
    def __init__(self, served: Served, guard: Guard) -> None:
        self._served, self._guard = served, guard
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="requests")
        self._markup = Markup(served.template)

    async def health(self, request: Request) -> Response:
        """GET /health: whether the server is up; needs no key."""
        self._guard.check_host(request)
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._guard.check(request)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in (self._served.name, BASE)]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._guard.check(request)
        self._check_name(request.path_params["name"])
        return JSONResponse(self._card(request.path_params["name"]))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        template = self._served.template

        def ask(body: ChatRequest) -> tuple[list[int], AnswerReader]:
            question = read_question(template, body)
            kwargs = body.chat_template_kwargs
            markup = Markup(template, kwargs) if kwargs else self._markup
            return chat_prompt(template, question), AnswerReader(markup, question)

        return await self._generate(request, ChatRequest, ask)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        served = self._served
        return await self._generate(
            request,
            CompletionRequest,
            lambda body: (text_prompt(served.template, body.prompt, served.vocabulary), None),
        )

    async def _generate(
        self, request: Request, kind: type[Body], ask: Callable[[Body], tuple[list[int], AnswerReader | None]]
    ) -> Response:
        self._guard.check(request)
        self._served.worker.check_room()
        raw = await self._guard.body(request)
        left = asyncio.ensure_future(_has_left(request))
        try:
            prompt, answer = await _unless(left, self._readers, self._read, raw, kind, ask)
            pieces = self._answer(left, prompt, answer)
            if answer.request.stream:
                first = await anext(pieces)  # so that a full line is status 429, and not a stream that fails
                return StreamingResponse(_events(answer, first, pieces), media_type="text/event-stream")
        except BaseException:
            left.cancel()
            raise
        text = ""
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
        return await asyncio.to_thread(lambda: JSONResponse(answer.whole(text, piece)))

    def _read(
        self, raw: bytes, kind: type[Body], ask: Callable[[Body], tuple[list[int], AnswerReader | None]]
    ) -> tuple[Prompt, Answer]:
        """A body -> what to generate, and how to write it. Takes up to seconds, so the event loop must not wait for it.

        Raises:
            ApiError: 400 or 404; the request cannot be answered.
        """
        served = self._served
        body = parse(raw, kind)
        self._check_name(body.model)
        check_length(served.template, body, served.max_positions)
        ids, reader = ask(body)
        seed = secrets.randbits(31) if body.seed is None else body.seed
        prompt = Prompt(
            ids,
            room(body, len(ids), served.max_positions, served.max_new_tokens),
            Sampling(float(body.temperature), float(body.top_p), seed),
            tuned=body.model != BASE,
        )
        return prompt, Answer(body, len(ids), reader)

    async def _answer(self, left: "asyncio.Future[None]", prompt: Prompt, answer: Answer) -> AsyncGenerator[Piece]:
        """Have the worker answer, until the last piece or until the client disconnects.

        Raises:
            ApiError: Too many requests wait, or the model failed.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Piece | ApiError]()
        decode = answer.reader.decode if answer.reader else self._served.template.decode
        job = GenerationJob(prompt, answer.request.stops, decode, lambda piece: _tell(loop, arrived, piece))
        left.add_done_callback(lambda _: arrived.put_nowait(_client_left()))
        try:
            self._served.worker.submit(job)
            while True:
                piece = await arrived.get()
                while not arrived.empty() and isinstance(piece, Piece):  # who reads slowly gets larger pieces
                    piece = _joined(piece, arrived.get_nowait())
                if isinstance(piece, ApiError):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            job.cancelled.set()
            left.cancel()

    def _check_name(self, name: str) -> None:
        if name not in (self._served.name, BASE):
            known = f"{self._served.name} and {BASE}"
            raise ApiError(404, f"no model {name[:100]!r} here; there are {known}", "model", "model_not_found")

    def _card(self, name: str) -> dict[str, object]:
        root = self._served
        return {
            "id": name,
            "object": "model",
            "created": root.created,
            "owned_by": "strop",
            "max_model_len": root.max_positions,
        }


def _tell(loop: asyncio.AbstractEventLoop, arrived: "asyncio.Queue[Piece | ApiError]", piece: Piece | ApiError) -> None:
    """Pass a piece from the worker's thread to the event loop, unless that has closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(arrived.put_nowait, piece)


def _joined(piece: Piece, then: Piece | ApiError) -> Piece | ApiError:
    return replace(then, text=piece.text + then.text) if isinstance(then, Piece) else then


def _client_left() -> ApiError:
    return ApiError(499, "the client disconnected")


async def _has_left(request: Request) -> None:
    """Wait until the client disconnects; the body has been read, so no other message can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(
    left: "asyncio.Future[None]", threads: ThreadPoolExecutor, work: Callable[..., Result], *arguments: Any
) -> Result:
    """Do some work in a thread, unless the client disconnects before it is begun.

    Raises:
        ApiError: The client disconnected.
    """
    working = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
    either: set[asyncio.Future[Any]] = {left, working}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        raise _client_left()
    return await working


async def _events(answer: Answer, first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncIterator[bytes]:
    """The events of a stream, written in threads: whether an answer is a call is found out by rendering."""
    yield b"".join(answer.first_events())
    try:
        yield await asyncio.to_thread(_bytes, answer, first)
        async for piece in pieces:
            yield await asyncio.to_thread(_bytes, answer, piece)
    except ApiError as error:
        yield failed_event(error)
    finally:
        await pieces.aclose()


def _bytes(answer: Answer, piece: Piece) -> bytes:
    return b"".join(answer.events(piece))
