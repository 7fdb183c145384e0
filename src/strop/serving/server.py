"""The endpoint on a port of this machine, from the first request to Ctrl-C."""

import ipaddress
import socket
import traceback
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from strop.errors import RecipeError


def is_loopback(host: str) -> bool:
    """Whether a name or address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Take the port, before the minutes that loading a model may take; nothing is answered yet.

    Raises:
        RecipeError: It is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise RecipeError(f"{host}:{port} cannot be taken: {error.strerror or error}; give another --port") from error
    return taken


def run(app: Starlette, taken: socket.socket, on_exit: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM.

    Args:
        app: The endpoint.
        taken: From `bind`.
        on_exit: Called as soon as a signal came, so that nothing under way holds the end up.
    """
    config = uvicorn.Config(
        _reporting(app),
        log_level="critical",  # what is not HTTP is no news
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    _Server(config, on_exit).run(sockets=[taken])


def _reporting(app: Starlette) -> ASGIApp:
    """The application with its bugs told on stderr, and nothing of what callers do wrong."""

    async def reporting(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except h11.LocalProtocolError:
            pass  # the rest of the request was not HTTP, and uvicorn said so before the application had answered
        except Exception:
            traceback.print_exc()
            raise

    return reporting


class _Server(uvicorn.Server):
    """Ends without raising the signal again, which would make of every end an error."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_exit()
