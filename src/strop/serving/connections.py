"""How long a caller may take, and how many connections there may be: uvicorn's protocol, with limits.

uvicorn itself waits for ever: for a request's head, for the rest of its body, for a reader that has stopped.
"""

import json
import select
import socket
from asyncio import Transport
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from strop.serving.requests import ApiError

MAX_CONNECTIONS = 256
"""Over this, the connection that has waited longest without a request is closed; if all have one, the new one is."""

LIMITS = {"head": 10.0, "body": 30.0, "reader": 60.0, "closing": 10.0}
"""Seconds that a connection may spend: until a request's head is complete, from there to the end of its body, without
reading anything of what waits for it, and until its last bytes are read. An answer may take as long as it takes."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""How soon a peer that vanished without a word is noticed: a minute."""


class LimitedProtocol(H11Protocol):
    """One connection. The server calls `check` every second."""

    _stage: tuple[str, object] = ("", None)
    _since = 0.0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Accept the connection if there may be another."""
        super().connection_made(transport)
        _notice_lost_peers(transport.get_extra_info("socket"))
        self._notice_stage()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def resume_writing(self) -> None:
        """The reader has read."""
        super().resume_writing()
        self._since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; behind a complete answer that ends the connection, only close."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def check(self) -> None:
        """End the connection if its peer has taken too long, or has left while its request is answered."""
        stage = self._notice_stage()
        if stage == "answer":
            if _has_hung_up(self.transport.get_extra_info("socket")):
                self.transport.abort()
        elif self.loop.time() - self._since > LIMITS[stage]:
            self._time_out(stage)

    def _notice_stage(self) -> str:
        """What the connection waits for now. It began anew if that is another thing, or for another request."""
        if self.transport.is_closing():
            name = "closing"
        elif self.flow.write_paused:
            name = "reader"
        elif self.cycle is None or self.cycle.response_complete:
            name = "head"
        else:
            name = "body" if self.conn.their_state is h11.SEND_BODY else "answer"
        if self._stage != (name, self.cycle):
            self._stage, self._since = (name, self.cycle), self.loop.time()
        return name

    def _time_out(self, stage: str) -> None:
        can_answer = self.cycle is None or not self.cycle.response_started or self.cycle.response_complete
        if can_answer and (stage == "body" or (stage == "head" and self.conn.trailing_data[0])):
            self._refuse(ApiError(408, f"the {stage} of the request took longer than {LIMITS[stage]:.0f} s"))
        elif stage == "head":
            self.transport.close()
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        others: set[Any] = self.connections - {self}
        idle = [other for other in others if other._notice_stage() in ("head", "closing")]
        if idle:
            min(idle, key=lambda other: other._since).transport.abort()
        else:
            self._refuse(ApiError(503, f"{MAX_CONNECTIONS} requests are being answered; try again later"))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        body = json.dumps(error.to_json()).encode()
        head = (
            f"HTTP/1.1 {error.status} {'Request Timeout' if error.status == 408 else 'Service Unavailable'}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def _notice_lost_peers(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # macOS lacks some
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _has_hung_up(connected: socket.socket) -> bool:
    """Whether the peer has closed its side. asyncio does not see it while a further request waits to be read."""
    if not hasattr(select, "POLLRDHUP"):  # Linux has it
        return False
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
