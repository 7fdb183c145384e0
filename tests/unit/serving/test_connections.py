"""Callers that stop half-way, on raw sockets: each is ended in time, and nobody else waits for it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from strop.serving import connections
from strop.serving.server import bind, server_of
from waiting import PATIENCE, until

HOST = b"Host: localhost\r\n"


class Served:
    """A small application: one route reads its body, one streams without end, one waits."""

    def __init__(self) -> None:
        self.left = self.begun = 0
        self.app = Starlette(
            routes=[
                Route("/health", lambda request: JSONResponse({"status": "ok"})),
                Route("/body", self.body, methods=["POST"]),
                Route("/endless", self.endless),
                Route("/wait", self.wait),
            ]
        )

    async def body(self, request: Request) -> Response:
        with suppress(ClientDisconnect):
            return JSONResponse({"length": len(await request.body())})
        return Response()

    async def endless(self, request: Request) -> Response:
        async def chunks():
            self.begun += 1
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 65536
            finally:
                self.left += 1

        return StreamingResponse(chunks())

    async def wait(self, request: Request) -> Response:
        self.begun += 1
        while not await request.is_disconnected():
            await asyncio.sleep(0.02)
        self.left += 1
        return Response()


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def server(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[uvicorn.Server, int]]:
    for stage in connections.LIMITS:
        monkeypatch.setitem(connections.LIMITS, stage, 1.0)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    server = server_of(served.app, lambda: None)
    with bind("127.0.0.1", 0) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        until(lambda: server.started)
        yield server, taken.getsockname()[1]
        server.should_exit = True
        thread.join(PATIENCE)


def connected(port: int, sent: bytes = b"", **options: int) -> socket.socket:
    caller = socket.socket()
    if "receive_buffer" in options:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["receive_buffer"])
    caller.settimeout(PATIENCE)
    caller.connect(("127.0.0.1", port))
    caller.sendall(sent)
    return caller


def everything(caller: socket.socket) -> bytes:
    """What arrives until the server closes the connection."""
    received = b""
    try:
        while block := caller.recv(1 << 16):
            received += block
    except ConnectionResetError:
        pass
    return received


def is_healthy(port: int) -> bool:
    with connected(port, b"GET /health HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n") as caller:
        return everything(caller).startswith(b"HTTP/1.1 200")


STOPPING = [
    (b"", b""),
    (b"GET /heal", b"HTTP/1.1 408"),
    (b"GET /health HTTP/1.1\r\nHost: local", b"HTTP/1.1 408"),
    (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", b"HTTP/1.1 200"),  # kept alive, and silent
    (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\nGET /he", b"HTTP/1.1 200"),
    (b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\n", b"HTTP/1.1 408"),
    (b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\n{", b"HTTP/1.1 408"),
    (b"POST /body HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\n5\r\nab", b"HTTP/1.1 408"),
    (b"POST /body HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n" + HOST + b"\r\n", b"HTTP/1.1 100"),
    (b"POST /none HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\n{", b"HTTP/1.1 404"),  # answered before its end
]


def test_callers_that_stop_are_ended(server: tuple[uvicorn.Server, int], monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorns, port = server
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 100)
    with ExitStack() as callers:
        stopped = [callers.enter_context(connected(port, sent)) for sent, _ in STOPPING]
        assert is_healthy(port), "nobody waits for them"
        for caller, (sent, answer) in zip(stopped, STOPPING, strict=True):
            received = everything(caller)
            assert received.startswith(answer), sent
            assert received or not answer, sent
    until(lambda: not uvicorns.server_state.connections)


def test_a_refusal_is_in_openais_format(server: tuple[uvicorn.Server, int]) -> None:
    with connected(server[1], b"POST /body HTTP/1.1\r\nContent-Length: 9\r\n" + HOST + b"\r\n") as caller:
        head, _, body = everything(caller).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["message"] == "the body of the request took longer than 1 s"


def test_one_byte_now_and_then_does_not_help(server: tuple[uvicorn.Server, int]) -> None:
    with connected(server[1], b"GET /health HTTP/1.1\r\nX: ") as caller:
        caller.settimeout(0.1)
        answer = b""
        for _ in range(600):
            with suppress(OSError):  # nothing yet, or closed under our hands
                caller.sendall(b"a")
                answer += caller.recv(4096)
            if answer:
                break
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_reader_that_stops_ends_its_stream(served: Served, server: tuple[uvicorn.Server, int]) -> None:
    with connected(server[1], b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n", receive_buffer=4096) as caller:
        caller.recv(100)
        until(lambda: served.left == 1)
    until(lambda: not server[0].server_state.connections)


def test_a_reader_that_is_slow_is_served(served: Served, server: tuple[uvicorn.Server, int]) -> None:
    """It reads for three times the limit, with pauses of a third of it."""
    with connected(server[1], b"GET /endless HTTP/1.1\r\n" + HOST + b"\r\n") as caller:
        for _ in range(9):
            got = 0
            while got < 1 << 20:
                got += len(caller.recv(1 << 16))
            time.sleep(0.33)
        assert served.left == 0


def test_an_answer_may_take_longer_than_all_limits(served: Served, server: tuple[uvicorn.Server, int]) -> None:
    with connected(server[1], b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"):
        until(lambda: served.begun == 1)
        time.sleep(2.5)
        assert served.left == 0
    until(lambda: served.left == 1)


def test_a_caller_that_keeps_asking_is_kept(server: tuple[uvicorn.Server, int]) -> None:
    with connected(server[1]) as caller:
        for _ in range(25):
            caller.sendall(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += caller.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


def test_idle_connections_make_room(server: tuple[uvicorn.Server, int]) -> None:
    with ExitStack() as callers:
        idle = [callers.enter_context(connected(server[1])) for _ in range(40)]
        assert is_healthy(server[1])
        until(lambda: len(server[0].server_state.connections) <= 8)
        assert everything(idle[0]) == b""


def test_too_many_requests_are_told_to_come_back(served: Served, server: tuple[uvicorn.Server, int]) -> None:
    with ExitStack() as callers:
        for _ in range(8):
            callers.enter_context(connected(server[1], b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"))
        until(lambda: served.begun == 8)
        with connected(server[1]) as one_more:
            assert everything(one_more).startswith(b"HTTP/1.1 503")
        assert served.left == 0
    until(lambda: served.left == 8)
    assert is_healthy(server[1])
