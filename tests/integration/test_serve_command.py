"""`strop serve` and `strop chat` as a user runs them: a tiny run behind a port, called with OpenAI's own client."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tiny_runs import environment, strop, write_recipe
from waiting import PATIENCE

QUESTION = "Say the words of row 3.\n\nblue stone"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    folder = tmp_path_factory.mktemp("workshop")
    done = strop("train", write_recipe(folder, max_steps=3, save_steps=0), cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


class Server:
    """A `strop serve` process that answers."""

    def __init__(self, workshop: Path, *arguments: object, **variables: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "strop", "serve", str(workshop / "run"), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment(workshop / "cache") | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        first = ""
        for first in self.process.stdout:
            if first.startswith("serving"):
                break
        found = re.match(r"serving run \(tuned\) and base on (http://127.0.0.1:(\d+))/v1\. Ctrl-C ends\n", first)
        assert found, first + self.process.communicate()[1]
        self.url, self.port = found[1], int(found[2])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Signal it; its exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(workshop: Path, *arguments: object, **variables: str) -> Iterator[Server]:
    server = Server(workshop, *arguments, **variables)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def server(workshop: Path) -> Iterator[Server]:
    with serving(workshop) as server:
        yield server
        assert server.end() == (0, "")  # whatever the tests did to it


def ask(server: Server, **settings: Any) -> str:
    messages: Any = [{"role": "user", "content": QUESTION}]
    defaults = {"model": "run", "messages": messages, "temperature": 0, "max_tokens": 12}
    answer = server.client().chat.completions.create(**(defaults | settings))
    return str(answer.choices[0].message.content)


def test_answers_are_those_of_strop_chat(server: Server, workshop: Path) -> None:
    arguments = ("--prompt", QUESTION, "--max-new-tokens", 12, "--compare")
    here = strop("chat", workshop / "run", *arguments, cache=workshop / "cache")
    there = strop("chat", server.url, *arguments, cache=workshop / "cache")
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    answers = here.stdout[here.stdout.index("base  ") :]  # before it stands what was loaded
    assert there.stdout == answers
    assert answers == f"base  {ask(server, model='base')}\ntuned  {ask(server)}\n"
    assert ask(server) != ask(server, model="base")


def test_openais_client_streams_the_same_answer(server: Server) -> None:
    client, messages = server.client(), [{"role": "user", "content": QUESTION}]
    settings: Any = {"model": "run", "messages": messages, "temperature": 0, "max_tokens": 12}
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ask(server)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert [model.id for model in client.models.list()] == ["run", "base"]


def test_sampling_follows_its_seed_and_top_p(server: Server) -> None:
    assert ask(server, temperature=1, seed=3) == ask(server, temperature=1, seed=3)
    assert ask(server, temperature=1, seed=3) != ask(server, temperature=1, seed=4)
    assert ask(server, temperature=1, seed=3, top_p=1e-6) == ask(server) == ask(server, temperature=1e-6, seed=5)


def test_completions_go_on_with_the_text(server: Server) -> None:
    settings: Any = {"model": "base", "temperature": 0, "max_tokens": 8}
    whole = server.client().completions.create(prompt="red blue", **settings)
    parts = server.client().completions.create(prompt="red blue", stream=True, **settings)
    assert whole.choices[0].text == "".join(part.choices[0].text for part in parts)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 2


def test_a_client_that_leaves_makes_room_for_the_others(server: Server) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    texts: list[str] = []
    for _ in range(3):
        stream = server.client().chat.completions.create(
            model="run", messages=messages, stream=True, max_tokens=400, temperature=0
        )
        texts.append(next(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
        stream.close()
    assert len(texts) == 3
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [ask(server)] * 4


def test_answers_at_once_are_those_of_one_at_a_time(server: Server) -> None:
    """Of both models, with and without a seed: who else asks changes nothing."""
    asked = [
        {"model": ("run", "base")[i % 2], "temperature": (0, 1)[i % 4 > 1], "seed": i, "max_tokens": 8 + i}
        for i in range(8)
    ]
    alone = [ask(server, **settings) for settings in asked]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, settings=settings: together.update({i: ask(server, **settings)}))
        for i, settings in enumerate(asked)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone


def good(**changes: Any) -> dict[str, Any]:
    return {"model": "run", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1} | changes


WRONG_VALUES: list[tuple[str, Any]] = [
    *[("model", value) for value in (None, 1, "", "x" * 10_000, ["run"], "../../etc/passwd", "run\x00")],
    *[("messages", value) for value in (None, [], {}, "Hi", [None], [[]], ["Hi"], [{}], 7)],
    *[("messages", [{"role": role, "content": "Hi"}]) for role in ("function", "USER", "", None, 1, "system")],
    *[("messages", [{"role": "user", "content": c}]) for c in (None, 1, {}, [None], ["Hi"], [{"type": "image_url"}])],
    ("messages", [{"role": "user", "content": "Hi", "tool_calls": [{}]}]),
    ("messages", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]),
    ("messages", [{"role": "user", "content": "Hi", "name": "Ann"}]),
    *[("tools", value) for value in ({}, "x", [1], [{}], [{"type": "x"}], [{"type": "function", "function": {}}])],
    ("tools", [{"type": "function", "function": {"name": "f"}}]),  # SmolLM2's template has no place for tools
    *[("tool_choice", value) for value in ("required", "x", {}, {"type": "function", "function": {"name": "f"}}, 1)],
    *[("documents", value) for value in ({}, [1], [{}], [{"text": "x"}])],
    *[("chat_template_kwargs", value) for value in ([], "x", {"no_such_value": True})],
    ("messages", [{"role": "user"}]),
    *[("max_tokens", value) for value in (0, -1, 1.5, "4", True, 10**30, [], 513)],
    *[("max_completion_tokens", value) for value in (0, "4", 10**9)],
    *[("temperature", value) for value in (-0.1, 2.1, "1", True, [], {}, 10**400)],
    *[("top_p", value) for value in (0, -1, 1.1, "1", [])],
    *[("stop", value) for value in ("", [""], ["a"] * 5, [1], {}, 3, ["a", None])],
    *[("seed", value) for value in (1.5, "1", 2**63, -(2**70), [], True)],
    *[("n", value) for value in (0, 2, -1, "1", 1.5, True)],
    *[("stream", value) for value in ("true", 1, 0, [], {})],
    *[("stream_options", value) for value in ({}, {"include_usage": True}, {"x": 1}, [], True)],
    *[("logprobs", value) for value in (True, 5, "yes")],
    *[("presence_penalty", value) for value in (0.5, "0", [])],
    *[(name, []) for name in ("no_such_thing", "modalities", "__class__", "a" * 5000, "\ud83d\ude00", "")],
    *[(name, 1) for name in ("top_k", "min_p", "logit_bias", "response_format", "best_of", "prompt", "echo")],
]
WRONG_BODIES = [
    *[b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"{}", b"{'model': 1}"],
    b'{"model": "run", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"\\udfff": 1}',
    json.dumps(good()).encode()[:-1],
    json.dumps(good()).encode() + b"}",
    json.dumps(good()).encode("utf-16"),
    json.dumps(good()).replace("1", "NaN").encode(),
    json.dumps(good()).replace("1", "1" * 5000).encode(),
    json.dumps(good(temperature=float("inf"))).encode(),
]
WRONG_PATHS = [
    *[("GET", "/v1/chat/completions"), ("PUT", "/v1/chat/completions"), ("DELETE", "/v1/models")],
    *[("POST", "/v1/models"), ("GET", "/"), ("POST", "/v1/embeddings"), ("GET", "/v1/models/..%2f..%2fetc%2fpasswd")],
    *[("GET", "//etc/passwd"), ("GET", "/v1/models/%00"), ("POST", "/health"), ("GET", "/docs")],
]


def test_no_malformed_request_gets_more_than_a_refusal(server: Server) -> None:
    json_type = {"Content-Type": "application/json"}
    requests = [("POST", "/v1/chat/completions", json.dumps(good(**{name: v})).encode()) for name, v in WRONG_VALUES]
    requests += [("POST", path, body) for body in WRONG_BODIES for path in ("/v1/chat/completions", "/v1/completions")]
    requests += [(method, path, b"{}") for method, path in WRONG_PATHS]
    assert len(requests) > 140
    for method, path, body in requests:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request(method, path, body, json_type)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        assert 400 <= answer.status < 500, (method, path, body[:200], content)
        assert content["error"]["message"], content
        assert "Traceback" not in str(content)
    assert ask(server)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
)
def test_what_is_not_http_ends_its_own_connection_only(server: Server, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            assert not connection.recv(1000).startswith((b"HTTP/1.1 2", b"HTTP/1.1 5"))
    assert ask(server)


def test_a_signal_in_the_middle_of_an_answer_ends_it_cleanly(workshop: Path) -> None:
    key = {"Authorization": "Bearer a-key", "Content-Type": "application/json"}
    with serving(workshop, "--api-key-env", "MY_KEY", MY_KEY="a-key") as server:
        with pytest.raises(openai.AuthenticationError):
            server.client("other").models.list()
        refused = strop("chat", server.url, "--prompt", "Hi", cache=workshop / "cache")
        assert refused.returncode == 8
        assert "Set STROP_API_KEY" in refused.stderr
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        body = json.dumps(good(max_tokens=480, stream=True, temperature=0))
        connection.request("POST", "/v1/chat/completions", body, key)
        answer = connection.getresponse()
        answer.readline()
        assert server.end() == (0, "")
        assert b"[DONE]" not in answer.read(), "it does not wait for the answer's end"
        connection.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "name the variable of a key with --api-key-env"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "that variable must hold a key"),
        (("--host", "192.0.2.1", "--api-key-env", "PATH"), "cannot listen on 192.0.2.1:"),
    ],
)
def test_serve_refuses_before_it_loads_anything(workshop: Path, arguments: tuple[str, ...], message: str) -> None:
    done = strop("serve", workshop / "run", *arguments, cache=workshop / "cache")
    assert done.returncode == 2
    assert message in done.stderr
    assert "loading" not in done.stdout


def test_a_port_that_is_taken_is_said_so(server: Server, workshop: Path) -> None:
    done = strop("serve", workshop / "run", "--port", server.port, cache=workshop / "cache")
    assert done.returncode == 2
    assert "choose another --port" in done.stderr


def test_an_endpoint_that_is_not_there_is_one_message(workshop: Path) -> None:
    done = strop("chat", "http://127.0.0.1:9", "--prompt", "Hi", cache=workshop / "cache")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.count("\n") == 1
    assert "Is `strop serve` running there?" in done.stderr
    assert os.environ.get("STROP_API_KEY") is None
