"""A run's page on 127.0.0.1 while the run trains: one address, read only, for browsers on this machine alone."""

import hashlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from strop.errors import RecipeError, StropError
from strop.reporting.page import Page

ADDRESS = "127.0.0.1"

_FRESH_SECONDS = 1.0
"""For this long a page is served again instead of being rendered again, however many browsers ask."""


class PageServer(ThreadingHTTPServer):
    """Answers GET / with what `make` makes, and nothing else with anything.

    A site that the user visits cannot read the page: it would have to come by a name of its own (DNS rebinding), and
    requests are only answered that name this machine's address.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, make: Callable[[], Page], port: int = 0) -> None:
        """Listen.

        Args:
            make: The page as it is now.
            port: 0 for any that is free.

        Raises:
            RecipeError: The port is taken, or not allowed.
        """
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RecipeError(f"--port {port} cannot be served on: {reason}; leave it out, or name another") from error
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[float, Page] | None = None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """What a request's Host header may say."""
        return {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def page(self) -> Page:
        """The page, at most a second old."""
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > _FRESH_SECONDS:
                page = self._make()
                self._made = time.monotonic(), page
            return self._made[1]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "strop", ""
    timeout = 10

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            return self._refuse(421, "this address answers to 127.0.0.1 and localhost only")
        if self.path != "/":
            return self._refuse(404, "there is one page here: /")
        try:
            page = self.server.page()
        except StropError as error:
            return self._refuse(503, str(error))
        tag = f'"{hashlib.sha256(page.html).hexdigest()[:32]}"'
        unchanged = self.headers.get("If-None-Match") == tag
        self._answer(304 if unchanged else 200, b"" if unchanged else page.html, "text/html", page.policy, tag)

    def _refuse(self, status: int, reason: str) -> None:
        self._answer(status, f"{reason}\n".encode("utf-8", "replace"), "text/plain", "default-src 'none'")

    def _answer(self, status: int, body: bytes, kind: str, policy: str, tag: str | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        } | ({"ETag": tag} if tag else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the terminal is the user's."""
