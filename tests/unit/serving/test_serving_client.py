"""`strop chat URL` against servers that misbehave: one message each, and secrets for nobody else."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from strop.errors import EndpointError, RecipeError
from strop.serving import client
from strop.serving.client import connect, is_url

Answer = tuple[int, dict[str, str], bytes]
MODELS = json.dumps({"data": [{"id": "base"}, {"id": "mine"}]}).encode()


def event(contents: Any) -> bytes:
    return b"data: " + json.dumps(contents).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


class Scripted:
    """Answers every path with what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"/v1/models": (200, {}, MODELS)}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                scripted.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, headers, content = scripted.answers.get(self.path, (404, {}, b"nothing here"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    for name in (client.KEY, client.TOKEN_ID, client.TOKEN_SECRET):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked for this machine
    scripted = Scripted()
    threading.Thread(target=scripted.server.serve_forever, args=(0.01,), daemon=True).start()
    yield scripted
    scripted.server.shutdown()
    scripted.server.server_close()


def test_an_answer_comes_in_pieces(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.KEY, "a-key")
    body = b": a comment\n\n" + piece("He") + piece("") + piece("llo") + event({"choices": []}) + b"data: [DONE]\n\n"
    scripted.answers["/v1/chat/completions"] = (200, {}, body)
    session = connect(f"{scripted.url}/v1/", 7, 0.5)
    assert list(session.stream("Hi")) == ["He", "llo"]
    assert list(session.stream("Hi", tuned=False)) == ["He", "llo"]
    bodies = [json.loads(body) for path, _, body in scripted.asked if path == "/v1/chat/completions"]
    assert [body["model"] for body in bodies] == ["mine", "base"]
    assert bodies[0] | {"model": ""} == {
        "model": "",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "stream": True,
    }
    assert {headers["authorization"] for _, headers, _ in scripted.asked} == {"Bearer a-key"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, {}, b'{"error": {"message": "no key"}}'),
            r"refused the request \(HTTP 401\): no key. Set STROP_API_KEY",
        ),
        ((403, {}, b"<html>"), r"refused the request \(HTTP 403\): Forbidden"),
        ((404, {}, b'{"error": "gone"}'), r"does not exist \(HTTP 404\): gone"),
        ((503, {}, b""), "is still starting, or overloaded"),
        ((500, {}, b'{"error": {"message": ["x"]}}'), r"refused the request \(HTTP 500\)"),
        ((200, {}, b"<html>"), "returned no list of models"),
        ((200, {}, b'{"data": [1]}'), "returned no list of models"),
        ((200, {}, b'{"data": [{"id": "llama"}]}'), "not an endpoint of `strop serve`, .* it has llama$"),
        ((303, {"Location": "http://127.0.0.2:1/v1/models"}, b""), "redirects to 127.0.0.2:1"),
        ((303, {"Location": "file:///etc/passwd"}, b""), "not allowed"),
        ((200, {"Content-Length": "9999"}, b"{"), "lost the connection|returned no list of models"),
    ],
)
def test_what_is_no_endpoint_is_one_message(scripted: Scripted, answer: Answer, message: str) -> None:
    scripted.answers["/v1/models"] = answer
    with pytest.raises(EndpointError, match=message) as refused:
        connect(scripted.url, 7, 0.0)
    assert refused.value.exit_code == 8


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (piece("He"), "stopped in the middle of the answer; ask again"),
        (
            piece("He") + event({"error": {"message": "the server is shutting down"}}),
            "stopped in the middle of the answer: the server is shutting",
        ),
        (piece("He") + b"data: {\n\n", "an event that is not JSON"),
    ],
)
def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(scripted: Scripted, body: bytes, message: str) -> None:
    scripted.answers["/v1/chat/completions"] = (200, {}, body)
    pieces = connect(scripted.url, 7, 0.0).stream("Hi")
    assert next(pieces) == "He"
    with pytest.raises(EndpointError, match=message):
        next(pieces)


def test_modals_redirect_while_a_container_starts_is_followed(scripted: Scripted) -> None:
    scripted.answers["/v1/models"] = (303, {"Location": "/v1/models?__modal_function_call_id=fc-1"}, b"")
    scripted.answers["/v1/models?__modal_function_call_id=fc-1"] = (200, {}, MODELS)
    assert connect(scripted.url, 7, 0.0).models == ("base", "mine")


def test_secrets_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (client.KEY, client.TOKEN_ID, client.TOKEN_SECRET):
        monkeypatch.setenv(name, f"my-{name}")
    modal = client._secrets("me--strop-run.modal.run")
    assert (modal["Modal-Key"], modal["Modal-Secret"]) == ("my-MODAL_PROXY_TOKEN_ID", "my-MODAL_PROXY_TOKEN_SECRET")
    for host in ("modal.run.evil.example", "evilmodal.run", "127.0.0.1"):
        assert client._secrets(host) == {"Authorization": "Bearer my-STROP_API_KEY"}
    with pytest.raises(RecipeError, match="unencrypted"):
        connect("http://192.0.2.1:8000", 7, 0.0)
    with pytest.raises(RecipeError, match="unencrypted"):
        connect("http://me--strop-run.modal.run", 7, 0.0)


@pytest.mark.parametrize(
    "url", ["http://", "https://user:secret@host", "http://host?x=1", "http://host:port", "http://["]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert is_url(url)
    with pytest.raises(RecipeError, match="not an endpoint's address") as refused:
        connect(url, 7, 0.0)
    assert "secret" not in str(refused.value)
