"""What a request must be before anybody looks at its body: for this host, with the key, and not too large."""

import hmac

from starlette.requests import ClientDisconnect, Request

from strop.serving.requests import ApiError

MAX_BODY_BYTES = 2 << 20
_LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """Checks each request, before and while its body is read.

    A page in a browser is no caller: no CORS header is ever sent, the Host must be this machine's own name (a foreign
    name that was made to point here is refused), and JSON must be called so, which no plain form can do.

    Args:
        any_host: Take requests under any name; only where a key is needed.
        api_key: What the Authorization header must hold, or None.
    """

    def __init__(self, any_host: bool, api_key: str | None) -> None:
        assert api_key or not any_host
        self._any_host, self._api_key = any_host, api_key

    def check(self, request: Request) -> None:
        """Raise ApiError 403 or 401 for a request that is not ours or not allowed."""
        self.check_host(request)
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")

    def check_host(self, request: Request) -> None:
        """Raise ApiError 403 for a request under a name that is not this machine's own."""
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self._any_host and name not in _LOCAL_NAMES:
            raise ApiError(403, f"Host: {host!r} is not this server's; call it as 127.0.0.1 or localhost")

    async def body(self, request: Request) -> bytes:
        """The body of a JSON request.

        Raises:
            ApiError: 415 or 413.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "the body must be sent with Content-Type: application/json")
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
            raise ApiError(400, "the body ended early") from None
        return bytes(body)
