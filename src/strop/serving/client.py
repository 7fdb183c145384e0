"""The client behind `strop chat URL`: talks to an endpoint of `strop serve`, on this machine or on Modal.

Secrets come only from the environment: STROP_API_KEY for a bearer key, MODAL_PROXY_TOKEN_ID and
MODAL_PROXY_TOKEN_SECRET for Modal's proxy.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast
from urllib.parse import urlsplit

from strop.data.examples import Conversation, Message
from strop.errors import EndpointError, RecipeError

KEY, TOKEN_ID, TOKEN_SECRET = "STROP_API_KEY", "MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET"
_COLD_START = 1200.0
"""Seconds to wait for the next byte: a container takes minutes to start, load weights and compile."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MAX_LINE = 1 << 20


def is_url(text: str) -> bool:
    """Whether `strop chat` was given an endpoint rather than a run folder."""
    return text.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class EndpointSession:
    """Asks an endpoint; every question starts a new conversation.

    Attributes:
        url: The address, without a trailing /v1.
        models: Names of the base and of the tuned model there.
        max_new_tokens: Length of the longest answer, in tokens.
        temperature: 0 always picks the most likely token.
    """

    url: str
    models: tuple[str, str]
    max_new_tokens: int
    temperature: float

    def stream(self, question: str | Conversation, tuned: bool = True) -> Iterator[str]:
        """Yield the answer to a question piece by piece: reasoning, content, and calls of tools as JSON.

        Args:
            question: The user's text, or turns that are text alone, with their tools.
            tuned: False asks the base model.

        Raises:
            EndpointError: The endpoint cannot be reached, refuses, or stops in the middle.
        """
        chat = Conversation((Message("user", question),)) if isinstance(question, str) else question
        body: dict[str, Any] = {
            "model": self.models[tuned],
            "messages": [{"role": message.role, "content": message.content} for message in chat.messages],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stream": True,
        }
        if chat.tools:
            body["tools"] = list(chat.tools)
        last: str | None = None
        with _asked(f"{self.url}/v1/chat/completions", body) as answer:
            for event in _events(answer, self.url):
                if "error" in event:
                    raise EndpointError(f"{self.url} stopped in the middle of the answer: {_message(event)}")
                for choice in event.get("choices", []):
                    for part, text in _texts(choice["delta"]):
                        yield text if part == last or last is None else f"\n{text}"
                        last = part


def connect(url: str, max_new_tokens: int, temperature: float) -> EndpointSession:
    """Ask an endpoint for its models. On Modal this starts a container if none is running.

    Raises:
        RecipeError: The URL is not an address, or would send a secret unencrypted.
        EndpointError: It cannot be reached, refuses, or is not an endpoint of `strop serve`.
    """
    url = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.username or parts.query or parts.fragment:
        raise RecipeError(
            "this is not an endpoint's address: use one such as http://127.0.0.1:8000, without a user name in it"
        )
    host = str(parts.hostname)
    if parts.scheme == "http" and host not in _LOCAL and _secrets(host):
        raise RecipeError(
            f"{url}: {KEY} would be sent over the network unencrypted; use https, or a tunnel to this machine"
        )
    with _asked(f"{url}/v1/models") as answer:
        try:
            names = [str(card["id"]) for card in json.loads(answer.read(_MAX_LINE))["data"]]
        except (ValueError, LookupError, TypeError) as error:
            raise EndpointError(
                f"{url} does not answer like OpenAI's API: /v1/models returned no list of models"
            ) from error
    tuned = [name for name in names if name != "base"]
    if len(tuned) != 1 or "base" not in names:
        raise EndpointError(
            f"{url} is not an endpoint of `strop serve`, which has two models, base and a tuned one; it has "
            f"{', '.join(names) or 'none'}"
        )
    return EndpointSession(url, ("base", tuned[0]), max_new_tokens, temperature)


@contextmanager
def _asked(url: str, body: dict[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """Send a request; yields the response while it is open."""
    headers = {"Content-Type": "application/json"} | _secrets(urlsplit(url).hostname or "")
    data = None if body is None else json.dumps(body).encode()
    # A proxy, in the tests as for most people, does not lead back to this machine.
    proxies = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOCAL else []
    opener = urllib.request.build_opener(_StayThere, *proxies)
    try:
        with opener.open(urllib.request.Request(url, data, headers), timeout=_COLD_START) as answer:
            yield cast(IO[bytes], answer)
    except urllib.error.HTTPError as error:
        raise _refused(url, error) from error
    except TimeoutError as error:
        raise EndpointError(
            f"{url} sent nothing for {_COLD_START / 60:.0f} minutes; look at its log and try again"
        ) from error
    except urllib.error.URLError as error:
        raise EndpointError(f"cannot reach {url}: {error.reason}. Is `strop serve` running there?") from error
    except (OSError, http.client.HTTPException) as error:
        raise EndpointError(f"lost the connection to {url} ({type(error).__name__}); ask again") from error


def _texts(delta: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What there is to show of a piece of an answer, each with the part that it belongs to."""
    for part in ("reasoning_content", "reasoning", "content"):
        if text := delta.get(part):
            yield part, text
    for call in delta.get("tool_calls") or []:
        function = call.get("function") or {}
        name = f"{function['name']} " if function.get("name") else ""
        yield f"call {call.get('index')}", name + (function.get("arguments") or "")


class _StayThere(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to the same host, so that no secret reaches another.

    Modal redirects a request that has waited a long time, with 303 and to its own host.
    """

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise EndpointError(
                f"{req.full_url} redirects to {urlsplit(newurl).netloc}; use that address if it is the right one"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _secrets(host: str) -> dict[str, str]:
    """The headers with secrets for this host; Modal's proxy token is sent only to Modal."""
    headers = {}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    if host.endswith(".modal.run") and os.environ.get(TOKEN_ID):
        headers |= {"Modal-Key": os.environ[TOKEN_ID], "Modal-Secret": os.environ.get(TOKEN_SECRET, "")}
    return headers


def _refused(url: str, error: urllib.error.HTTPError) -> EndpointError:
    try:
        said = _message(json.loads(error.read(_MAX_LINE)))
    except (ValueError, OSError, http.client.HTTPException):
        said = str(error.reason)
    if error.code in (401, 403):
        on_modal = urlsplit(url).hostname or ""
        what = f"{TOKEN_ID} and {TOKEN_SECRET}" if on_modal.endswith(".modal.run") else KEY
        return EndpointError(f"{url} refused the request (HTTP {error.code}): {said}. Set {what} in the environment")
    if error.code == 404:
        return EndpointError(
            f"{url} does not exist (HTTP 404): {said}. Is the address right, and the endpoint still running?"
        )
    if error.code in (408, 502, 503, 504):
        return EndpointError(
            f"{url} is still starting, or overloaded (HTTP {error.code}): {said}. Try again in a minute"
        )
    return EndpointError(f"{url} refused the request (HTTP {error.code}): {said}")


def _events(answer: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event up to [DONE]."""
    while line := answer.readline(_MAX_LINE):
        name, _, value = line.partition(b":")
        if name != b"data":
            continue
        if value.strip() == b"[DONE]":
            return
        try:
            event = json.loads(value)
        except ValueError as error:
            raise EndpointError(f"{url} sent an event that is not JSON") from error
        if isinstance(event, dict):
            yield event
    raise EndpointError(f"{url} stopped in the middle of the answer; ask again")


def _message(body: Any) -> str:
    """The message of an error object, OpenAI's or any other."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
