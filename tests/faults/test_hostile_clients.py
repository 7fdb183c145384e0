"""The endpoint under hostile clients, from a seed: nothing but refusals, no traceback, and the next caller is answered.

A part runs with every test run, all of it with `make test-sweep`.
"""

import json
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from on_a_port import on_a_port
from scripted_pool import Script
from strop.data.template import load_template
from strop.serving import worker as serving_worker
from strop.serving.app import Served, build_app
from strop.serving.parameters import UNSUPPORTED
from strop.serving.requests import ChatRequest, CompletionRequest
from strop.serving.server import Guard, server_of
from strop.serving.worker import GenerationWorker
from waiting import PATIENCE

SMOLLM2 = Path(__file__).parents[1] / "fixtures" / "smollm2-tokenizer"
PATHS = ("/v1/chat/completions", "/v1/completions")
OURS = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
FIELDS = sorted({*OURS, *UNSUPPORTED["chat"], *UNSUPPORTED["completions"], "__class__", "", "x"})
MESSAGE_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight", "")


class Raw(str):
    """JSON, or what looks like it, as it is to be sent."""


WORDS = ("", "a", "user", "none", "\x00", "\u202e", "\U0001f600" * 9, "<|im_end|>", "{{ 7 * 7 }}", "x" * 9999)
NOT_JSON = ("NaN", "-Infinity", "1e999", "1" * 5000, '"\\ud800"', '"\\udc00\\ud800"', "1e-320", "0x1", "tru", '"')
NUMBERS = (0, 1, -1, 2, 0.5, 2**31, 2**63, -(2**63), 10**30, 1e-320, True, False, None)


def scalar(chance: random.Random) -> Any:
    return chance.choice([chance.choice(WORDS), Raw(chance.choice(NOT_JSON)), *chance.choices(NUMBERS, k=3)])


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if depth > 3 or kind < 0.6:
        return scalar(chance)
    if kind < 0.8:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = (*MESSAGE_FIELDS, "type", "function", "parameters", "arguments", "text", "include_usage")
    return {chance.choice(names): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def written(item: Any) -> str:
    """JSON in which `Raw` is as it is."""
    if isinstance(item, Raw):
        return str(item)
    if isinstance(item, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(held)}" for key, held in item.items()) + "}"
    return "[" + ",".join(map(written, item)) + "]" if isinstance(item, list) else json.dumps(item)


def good(chance: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"model": chance.choice(["mine", "base"]), "max_tokens": 2, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Hi"}]
    return body | ({"stream": True} if chance.random() < 0.2 else {})


def body_of(chance: random.Random) -> bytes:
    body = good(chance)
    for _ in range(chance.randrange(3)):
        body[chance.choice(FIELDS)] = value(chance)
    if chance.random() < 0.3:
        body["messages"] = [{chance.choice(MESSAGE_FIELDS): value(chance) for _ in range(3)} for _ in range(3)]
    if chance.random() < 0.1:
        body["prompt"] = body.pop("messages")
    text = written(body)
    if chance.random() < 0.1:  # the same key again
        text = text[:-1] + f',"{chance.choice(FIELDS)}":{written(value(chance))}}}'
    if chance.random() < 0.1:
        deep = chance.choice([10, 63, 64, 65, 500, 5000, 100_000])
        nest = chance.choice(["[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep])
        text = text[:-1] + f',"{chance.choice(FIELDS)}":{nest}}}'
    sent = text.encode(chance.choice(["utf-8"] * 8 + ["utf-16", "utf-32"]))
    for _ in range(chance.choice([0, 0, 0, 1, 3])):  # damage
        at = chance.randrange(1, len(sent) + 1) - 1 or 1
        sent = chance.choice([sent[:at], sent[:at] + bytes([chance.randrange(256)]) + sent[at + 1 :], sent[:at] + sent])
    return sent


def chunked(body: bytes, chance: random.Random) -> bytes:
    blocks, at = b"", 0
    while at < len(body):
        size = chance.randrange(1, 200)
        block = body[at : at + size]
        blocks += b"%x%s\r\n%s\r\n" % (len(block), chance.choice([b"", b";ext=1", b""]), block)
        at += size
    return blocks + chance.choice([b"0\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n", b"", b"-1\r\n", b"zz\r\n\r\n"])


METHODS = (b"POST",) * 9 + (b"GET", b"po st", b"TRACE")
HOSTS = (b"Host: localhost",) * 12 + (b"Host: evil.example", b"Host: localhost\r\nHost: evil", b"X: 1")
TYPES = (b"application/json",) * 9 + (b"text/plain", b"", b"application/json; charset=latin-1", b"\xff")
EXTRAS = (b"X: 1",) * 9 + (b" folded: 1", b"A\x00: b", b"X: " + b"y" * 70_000, b"Expect: 100-continue", b"Upgrade: h2c")
FRAMINGS = (b"Content-Length: %d",) * 12 + (
    *(b"Content-Length: %d\r\n" + other for other in (b"Content-Length: 0", b"Transfer-Encoding: chunked", b"X: %%")),
    *(b"Content-Length: %d" + other for other in (b"0", b", 5", b"\r\nTransfer-Encoding: xchunked")),
    *(b"Content-Length: " + other + b"%.0d" for other in (b"+5", b"9" * 400, b"0x10", b"-1", b"3")),
    *(b"Transfer-Encoding" + other + b"%.0d" for other in (b": chunked, identity", b" : chunked", b":\tchunked")),
)


def request_of(chance: random.Random) -> bytes:
    """A request, or several, or something that resembles one."""
    body = body_of(chance)
    framing = chance.choice(FRAMINGS) % len(body)
    if chance.random() < 0.15:
        framing, body = b"Transfer-Encoding: chunked", chunked(body, chance)
    line = b"%s %s HTTP/1.1" % (chance.choice(METHODS), chance.choice(PATHS).encode())
    kind, end = b"Content-Type: " + chance.choice(TYPES), chance.choice([b"\r\n"] * 9 + [b"\n"])
    request = end.join([line, chance.choice(HOSTS), kind, framing, chance.choice(EXTRAS), b"", body])
    again = chance.random()
    return request * 3 if again < 0.05 else request[: chance.randrange(1, len(request))] if again < 0.12 else request


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        script = Script()
        script.tokens = [9690] * 8192
        patch.setattr(serving_worker, "Pool", script.pool)
        template = load_template(SMOLLM2, "chat", ["messages"])
        worker = GenerationWorker(script, template.stop_ids)  # type: ignore[arg-type]
        app = build_app(Served("mine", 1, worker, template, 8192, 49152, 4), Guard(False, None))
        with on_a_port(server_of(app, worker.close)) as port:
            yield port
        worker.join()


def answers_to(port: int, request: bytes) -> bytes:
    """All that the server says to a client that then closes its side."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as caller, suppress(ConnectionError):
        caller.sendall(request)
        caller.settimeout(0.05)
        with suppress(TimeoutError):  # the request is not complete, or not yet answered
            while not received.endswith((b"}", b"[DONE]\n\n", b"0\r\n\r\n")) and (block := caller.recv(1 << 20)):
                received += block
            return received
        caller.settimeout(PATIENCE)
        caller.shutdown(socket.SHUT_WR)
        while block := caller.recv(1 << 20):
            received += block
    return received


@pytest.mark.parametrize(("first", "count"), [(0, 250), pytest.param(250, 10_000, marks=pytest.mark.sweep)])
def test_a_hostile_client_gets_nothing_but_refusals(
    first: int, count: int, port: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    statuses: dict[bytes, int] = {}
    for seed in range(first, first + count):
        request = request_of(random.Random(seed))
        received = answers_to(port, request)
        for status in re.findall(rb"HTTP/1.1 (\d\d\d) ", received):
            statuses[status] = statuses.get(status, 0) + 1
            assert status < b"500", (seed, request[:2000], received[:2000])
        assert b"Traceback" not in received, (seed, request[:2000])
        if seed % 50 == 0:
            health = answers_to(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert health.endswith(b'{"status":"ok"}'), seed
    assert {b"200", b"400", b"403", b"415"} <= set(statuses), statuses
    assert "Traceback" not in (said := capfd.readouterr().err), said
    assert "failed" not in said
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")], caplog.text
