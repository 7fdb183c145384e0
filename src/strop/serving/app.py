"""The endpoint as an ASGI application: its routes, and errors in OpenAI's format."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from strop.data.template import Template
from strop.serving.answers import AnswerReader
from strop.serving.markup import Markup
from strop.serving.requests import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    chat_prompt,
    parse,
    read_question,
    text_prompt,
)
from strop.serving.responses import Answer, failed_event
from strop.serving.server import Guard
from strop.serving.worker import GenerationJob, GenerationWorker, Piece

BASE = "base"
"""The model name under which the endpoint answers without the adapter."""

Body = TypeVar("Body", bound=GenerationRequest)


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
        body = parse(await self._guard.body(request), kind)
        self._check_name(body.model)
        prompt, reader = ask(body)
        pieces = self._answer(request, prompt, body, reader.decode if reader else self._served.template.decode)
        answer = Answer(body, len(prompt), reader)
        if body.stream:
            first = await anext(pieces)  # so that a full queue is status 429, and not a stream that fails
            return StreamingResponse(_events(answer, first, pieces), media_type="text/event-stream")
        text = ""
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
        return JSONResponse(answer.whole(text, piece))

    async def _answer(
        self, request: Request, prompt: list[int], body: GenerationRequest, decode: Callable[[Sequence[int]], str]
    ) -> AsyncGenerator[Piece]:
        """Have the worker answer, until the last piece or until the client disconnects.

        Raises:
            ApiError: The answer would be too long, the queue is full, or the model failed.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Piece | ApiError]()
        job = GenerationJob(
            prompt,
            body.model != BASE,
            self._room(len(prompt), body),
            float(body.temperature),
            float(body.top_p),
            secrets.randbits(31) if body.seed is None else body.seed,
            body.stops,
            decode,
            lambda piece: _tell(loop, arrived, piece),
        )
        self._served.worker.submit(job)
        gone = asyncio.ensure_future(_has_gone(request))
        gone.add_done_callback(lambda _: arrived.put_nowait(ApiError(499, "the client disconnected")))
        try:
            while True:
                piece = await arrived.get()
                if isinstance(piece, ApiError):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            job.cancelled.set()
            gone.cancel()

    def _room(self, num_prompt: int, body: GenerationRequest) -> int:
        """The most tokens that the answer may have."""
        limit = body.limit
        left = self._served.max_positions - num_prompt
        if left < (limit or 1):
            raise ApiError(
                400,
                f"the prompt has {num_prompt:,} tokens and the answer may take {limit or 1:,}; the model's context is "
                f"{self._served.max_positions:,} tokens for both",
                "max_tokens" if limit else "messages" if isinstance(body, ChatRequest) else "prompt",
                "context_length_exceeded",
            )
        return min(left, self._served.max_new_tokens) if limit is None else limit

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
    if not loop.is_closed():
        loop.call_soon_threadsafe(arrived.put_nowait, piece)


async def _has_gone(request: Request) -> None:
    """Wait until the client disconnects; the body has been read, so no other message can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(answer: Answer, first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncIterator[bytes]:
    for event in answer.first_events():
        yield event
    try:
        for event in answer.events(first):
            yield event
        async for piece in pieces:
            for event in answer.events(piece):
                yield event
    except ApiError as error:
        yield failed_event(error)
    finally:
        await pieces.aclose()
