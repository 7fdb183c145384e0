"""The port of this machine: which requests are let in, and uvicorn answering them until Ctrl-C."""

import hmac
import ipaddress
import socket
import traceback
from collections.abc import Callable
from types import FrameType
from typing import cast

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from strop.errors import RecipeError
from strop.serving.connections import LimitedProtocol
from strop.serving.requests import ApiError

MAX_BODY_BYTES = 2 << 20
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """Checks each request before and while its body is read: host, key, content type, size.

    Browser pages are kept out. No CORS header is ever sent. The Host header must be one of this machine's own names,
    which stops a foreign name that was made to resolve here. JSON must be declared as JSON, which a plain form cannot
    do.

    Args:
        any_host: Accept any Host header; allowed only together with a key.
        api_key: The bearer key that the Authorization header must hold, or None.
    """

    def __init__(self, any_host: bool, api_key: str | None) -> None:
        assert api_key or not any_host
        self._any_host, self._api_key = any_host, api_key

    def check(self, request: Request) -> None:
        """Raise ApiError 403 if the request names another host, 401 if its key is missing or wrong."""
        self.check_host(request)
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise ApiError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    def check_host(self, request: Request) -> None:
        """Raise ApiError 403 if the Host header is not one of this machine's own names."""
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._any_host and name not in _LOCAL_NAMES:
            raise ApiError(403, f"Host {host!r} is not this server; call it as 127.0.0.1 or localhost")

    async def body(self, request: Request) -> bytes:
        """Read the body of a JSON request.

        Raises:
            ApiError: 415 if it is not declared as JSON, 413 if it is too large, 400 if it is cut off.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "send the body with Content-Type: application/json")
        too_large = ApiError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
            raise too_large
        body = bytearray()
        try:
            async for block in request.stream():
                body += block
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
        except ClientDisconnect:
            raise ApiError(400, "the connection closed before the whole body arrived") from None
        return bytes(body)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Reserve the port before the model loads, which may take minutes; connections are not accepted yet.

    Raises:
        RecipeError: The port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise RecipeError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error
    return reserved


def server_of(app: Starlette, on_exit: Callable[[], None]) -> uvicorn.Server:
    """A server that answers until SIGINT or SIGTERM, once it is run with the socket from `bind`.

    Args:
        app: The endpoint.
        on_exit: Called as soon as a signal arrives, so that unfinished answers do not delay the exit.
    """
    config = uvicorn.Config(
        _reporting(app),
        log_level="critical",  # uvicorn would warn about every request that is not HTTP
        access_log=False,
        lifespan="off",
        ws="none",
        http=LimitedProtocol,
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    return _Server(config, on_exit)


def _reporting(app: Starlette) -> ASGIApp:
    """The application, printing its own bugs to stderr but not the callers' mistakes."""

    async def reporting(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except h11.LocalProtocolError:
            pass  # the rest of the request was not HTTP; uvicorn answered that before the application could
        except Exception:
            traceback.print_exc()
            raise

    return reporting


class _Server(uvicorn.Server):
    """Exits normally on a signal: uvicorn would raise it again, so that every exit counted as an error.

    Every second it looks for connections that have taken too long.
    """

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                cast(LimitedProtocol, connection).check()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_exit()
