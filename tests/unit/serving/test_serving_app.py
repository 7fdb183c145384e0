"""The application around a scripted model: what is waited for, what is given up, and who may ask."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from on_a_port import on_a_port
from real_templates import tokenizer_folder
from scripted_pool import Script
from strop.data.template import Template, load_template
from strop.errors import RecipeError
from strop.evaluation.pool import Prompt
from strop.evaluation.sampling import Sampling
from strop.serving import app as serving_app
from strop.serving import require_server
from strop.serving import worker as serving_worker
from strop.serving.app import Served, build_app
from strop.serving.requests import ApiError
from strop.serving.server import MAX_BODY_BYTES, Guard, server_of
from strop.serving.worker import GenerationJob, GenerationWorker, Piece
from waiting import PATIENCE, until

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"
STOP = 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_template(SMOLLM2, "chat", ["messages"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(serving_worker, "Pool", script.pool)
    return script


@pytest.fixture
def worker(script: Script, template: Template) -> Iterator[GenerationWorker]:
    worker = GenerationWorker(script, template.stop_ids)  # type: ignore[arg-type]
    yield worker
    worker.join()


def application(worker: GenerationWorker, template: Template, guard: Guard) -> TestClient:
    app = build_app(Served("mine", 1, worker, template, 4000, 49152, 256), guard)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def client(worker: GenerationWorker, api_key: str | None = None, any_host: bool = False) -> TestClient:
    template = load_template(SMOLLM2, "chat", ["messages"])
    return application(worker, template, Guard(any_host, api_key))


def question(**changes: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [{"role": "user", "content": "Hi"}]} | changes


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.serving.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'strop\[serve\]'"):
        require_server()


def test_an_answer_ends_at_its_stop_token_and_is_counted(script: Script, worker: GenerationWorker) -> None:
    script.tokens = [9690, 28, STOP]
    answer = client(worker).post("/v1/chat/completions", json=question(temperature=0, seed=7)).json()
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "system,"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    asked = script.prompts[0]
    prompt = len(asked.ids)
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}
    assert (asked.max_new_tokens, asked.sampling, asked.row) == (256, Sampling(0.0, 1.0, 7), 0)


@pytest.mark.parametrize(
    ("changes", "text", "reason"),
    [
        ({"max_tokens": 2}, "system,", "length"),
        ({"max_completion_tokens": 1}, "system", "length"),
        ({"stop": "stem"}, "sy", "stop"),
        ({"stop": [","]}, "system", "stop"),
    ],
)
def test_limits_and_stop_texts(
    script: Script, worker: GenerationWorker, changes: dict[str, Any], text: str, reason: str
) -> None:
    script.tokens = [9690, 28, 28, STOP]
    [choice] = client(worker).post("/v1/chat/completions", json=question(**changes)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


def test_names_choose_the_adapter(script: Script, worker: GenerationWorker) -> None:
    script.tokens = [STOP]
    caller = client(worker)
    for name in ("mine", "base", "mine"):
        assert caller.post("/v1/chat/completions", json=question(model=name)).json()["model"] == name
    assert [prompt.tuned for prompt in script.prompts] == [True, False, True]
    assert [card["id"] for card in caller.get("/v1/models").json()["data"]] == ["mine", "base"]
    assert caller.get("/v1/models/base").json()["id"] == "base"
    unknown = caller.post("/v1/chat/completions", json=question(model="gpt"))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_a_stream_is_the_same_answer_in_pieces(script: Script, worker: GenerationWorker) -> None:
    script.tokens = [9690, 28, STOP]
    body = question(stream=True, stream_options={"include_usage": True})
    response = client(worker).post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *texts, last, usage = chunks
    first, *rest = [chunk["choices"][0]["delta"] for chunk in texts]
    assert first == {"role": "assistant", "content": ""}
    assert "".join(delta.pop("content") for delta in rest) == "system,"
    assert not any(rest)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_a_failing_model_is_an_error_and_the_next_request_is_answered(
    script: Script, worker: GenerationWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    caller, script.tokens = client(worker), [-1]
    failed = caller.post("/v1/chat/completions", json=question())
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert "/secret" not in failed.text
    assert "the device is gone" in capsys.readouterr().err  # the person at the server is told
    script.tokens = [STOP]
    assert caller.post("/v1/chat/completions", json=question()).status_code == 200


def collected(worker: GenerationWorker, limit: int = 10_000) -> tuple[GenerationJob, list[Piece | ApiError]]:
    pieces: list[Piece | ApiError] = []
    job = GenerationJob(Prompt([1], limit), (), str, pieces.append)
    worker.submit(job)
    return job, pieces


def test_what_nobody_waits_for_is_not_generated(script: Script, worker: GenerationWorker) -> None:
    script.slots = 1
    job, pieces = collected(worker)
    until(lambda: len(pieces) > 3)
    waiting, unheard = collected(worker)
    waiting.cancelled.set()
    job.cancelled.set()
    _, answered = collected(worker, 1)
    until(lambda: answered)
    assert script.yielded < 1000  # of 10,000
    assert unheard == []
    assert len(script.prompts) == 2


def test_requests_join_a_running_batch_and_leave_it(script: Script, worker: GenerationWorker) -> None:
    job, pieces = collected(worker)
    until(lambda: pieces)
    _, short = collected(worker, 5)
    until(lambda: short and isinstance(short[-1], Piece) and short[-1].finish_reason)
    assert script.together == 2
    assert not any(isinstance(piece, Piece) and piece.finish_reason for piece in pieces)
    job.cancelled.set()
    until(lambda: script.is_idle)


def test_an_answer_that_cannot_be_decoded_harms_no_other(
    script: Script, worker: GenerationWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    _, good = collected(worker, 50)
    bad: list[Piece | ApiError] = []
    worker.submit(GenerationJob(Prompt([1], 50), (), lambda ids: {}[ids], bad.append))  # type: ignore[index]
    until(lambda: good and isinstance(good[-1], Piece) and good[-1].finish_reason and bad)
    [error] = bad
    assert isinstance(error, ApiError)
    assert error.status == 500
    assert "a request failed: " in capsys.readouterr().err


@pytest.fixture
def port(script: Script, worker: GenerationWorker) -> Iterator[int]:
    """The application behind a real port, where callers can hang up."""
    with on_a_port(server_of(client(worker).app, lambda: None)) as port:  # type: ignore[arg-type]
        yield port


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("further", [b"", b"\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_caller_that_hangs_up_stops_its_answer(script: Script, port: int, streams: bool, further: bytes) -> None:
    """Also one that has sent more than its request, which uvicorn leaves unread until the answer is complete."""
    for asked in (1, 2):  # the second finds nobody in its way
        caller = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        body = json.dumps(question(max_tokens=3900, stream=streams))
        caller.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        caller.sock.sendall(further)
        until(lambda asked=asked: len(script.prompts) == asked)
        if streams:
            caller.getresponse().readline()
        caller.sock.shutdown(socket.SHUT_RDWR)
        caller.close()
        until(lambda: script.is_idle)
    assert script.yielded < 4000  # of 7,800


@pytest.mark.parametrize("slow", ["chat_prompt", "parse", "check_length"])
def test_a_request_that_takes_long_to_read_holds_nobody(
    slow: str, script: Script, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing, rendering and tokenising happen in threads; who leaves before them is not even read."""
    begun, go_on, read = threading.Semaphore(0), threading.Event(), getattr(serving_app, slow)

    def slowly(*arguments: Any) -> Any:
        begun.release()
        assert go_on.wait(PATIENCE)
        return read(*arguments)

    monkeypatch.setattr(serving_app, slow, slowly)
    script.tokens = [STOP]
    callers = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for _ in range(4)]
    for caller in callers:
        caller.request("POST", "/v1/chat/completions", json.dumps(question()), {"Content-Type": "application/json"})
    for _ in range(2):
        assert begun.acquire(timeout=PATIENCE)
    healthy = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    healthy.request("GET", "/health")
    assert healthy.getresponse().status == 200
    callers[3].close()
    go_on.set()
    assert [caller.getresponse().status for caller in callers[:3]] == [200] * 3


def test_a_full_line_says_so(script: Script, worker: GenerationWorker) -> None:
    jobs = [collected(worker) for _ in range(script.slots)]
    until(lambda: len(script.prompts) == script.slots)
    jobs += [collected(worker) for _ in range(serving_worker.MAX_WAITING)]
    refused = client(worker).post("/v1/chat/completions", json=question(stream=True))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    with pytest.raises(ApiError, match="already waiting"):
        collected(worker)
    worker.close()
    until(lambda: all(pieces and isinstance(pieces[-1], ApiError) for _, pieces in jobs))
    assert {pieces[-1].status for _, pieces in jobs if isinstance(pieces[-1], ApiError)} == {503}
    with pytest.raises(ApiError, match="shutting down"):
        collected(worker)


def test_a_key_is_asked_for_everywhere_but_health(script: Script, worker: GenerationWorker) -> None:
    script.tokens = [STOP]
    caller = client(worker, api_key="hunter2", any_host=True)
    assert caller.get("/health", headers={"Host": "my-machine:8000"}).status_code == 200
    for headers in (
        {},
        {"Authorization": "Bearer hunter"},
        {"Authorization": "hunter2"},
        {"Authorization": "Bearer é"},
    ):
        encoded = {name: value.encode() for name, value in headers.items()}
        assert caller.get("/v1/models", headers=encoded).status_code == 401
        assert caller.post("/v1/chat/completions", json=question(), headers=encoded).status_code == 401
    assert script.prompts == []
    right = {"Authorization": "Bearer hunter2", "Host": "my-machine:8000"}
    assert caller.post("/v1/chat/completions", json=question(), headers=right).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil:1", ""]
)
def test_a_foreign_name_for_this_machine_is_refused(script: Script, worker: GenerationWorker, host: str) -> None:
    caller = client(worker)
    for path in ("/health", "/v1/models"):
        assert caller.get(path, headers={"Host": host}).status_code == 403
    assert caller.post("/v1/chat/completions", json=question(), headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "[::1]:9", "[::1]"])
def test_this_machines_own_names_are_taken(script: Script, worker: GenerationWorker, host: str) -> None:
    assert client(worker).get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_page_in_a_browser_gets_nothing(script: Script, worker: GenerationWorker) -> None:
    caller, origin = client(worker), {"Origin": "http://evil.example"}
    form = {**origin, "Content-Type": "text/plain"}
    assert caller.post("/v1/chat/completions", content=json.dumps(question()), headers=form).status_code == 415
    preflight = caller.options("/v1/chat/completions", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 405
    answers = [preflight, caller.get("/v1/models", headers=origin)]
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)
    assert script.prompts == []


def test_a_large_body_is_not_read(script: Script, worker: GenerationWorker) -> None:
    caller, kind = client(worker), {"Content-Type": "application/json"}
    large = question(user="x" * MAX_BODY_BYTES)
    assert caller.post("/v1/chat/completions", json=large).status_code == 413

    def endless() -> Iterator[bytes]:  # no Content-Length
        for _ in range(2 * MAX_BODY_BYTES // 65536):
            yield b" " * 65536

    assert caller.post("/v1/chat/completions", content=endless(), headers=kind).status_code == 413
    assert script.prompts == []


def test_what_does_not_fit_the_context_is_refused(script: Script, worker: GenerationWorker) -> None:
    script.tokens, caller = [STOP], client(worker)
    prompt = {"model": "base", "prompt": [1] * 3990}
    assert caller.post("/v1/completions", json=prompt | {"max_tokens": 10}).status_code == 200
    for extra, param in (({"max_tokens": 11}, "max_tokens"), ({"prompt": [1] * 4000}, "prompt")):
        refused = caller.post("/v1/completions", json=prompt | extra)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert refused.json()["error"]["param"] == param
    caller.post("/v1/completions", json=prompt)
    assert script.prompts[-1].max_new_tokens == 10  # the rest of the context, where no limit was named


def test_requests_at_the_same_time_are_answered_together(script: Script, worker: GenerationWorker) -> None:
    caller, seen = client(worker), []

    def ask(limit: int) -> None:
        body = question(max_tokens=limit)
        seen.append(caller.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == limit)

    threads = [threading.Thread(target=ask, args=(limit,)) for limit in range(20, 28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert script.together > 1


TOOL = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "tide", "arguments": {"at": "Oban"}}\n</tool_call>'


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return load_template(tokenizer_folder("qwen3", tmp_path_factory.mktemp("qwen3")), "chat", ["messages"])


def spoken(script: Script, template: Template, text: str) -> None:
    [ids] = template.tokenizer([text + "<|im_end|>"], add_special_tokens=False)["input_ids"]
    script.tokens = ids


def deltas(response: Any) -> tuple[list[dict[str, Any]], str]:
    """The deltas of a stream, and why it ended."""
    *events, _, _ = response.text.split("\n\n")
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]


@pytest.mark.parametrize(
    ("text", "message", "reason"),
    [
        (
            "<think>\nA port.\n</think>\n\n" + CALL,
            {"reasoning_content": "A port.", "content": None, "calls": 1},
            "tool_calls",
        ),
        (f"<think>\n\n</think>\n\nBoth.\n{CALL}\n{CALL}", {"content": "Both.", "calls": 2}, "tool_calls"),
        ("<think>\nHm\n</think>\n\n3 m", {"reasoning_content": "Hm", "content": "3 m", "calls": 0}, "stop"),
        ("<think>\n\n</think>\n\n<tool_call>", {"content": "<tool_call>", "calls": 0}, "stop"),
    ],
)
def test_calls_and_reasoning_have_fields_of_their_own(
    script: Script, qwen3: Template, text: str, message: dict[str, Any], reason: str
) -> None:
    worker = GenerationWorker(script, qwen3.stop_ids)  # type: ignore[arg-type]
    caller = application(worker, qwen3, Guard(False, None))
    spoken(script, qwen3, text)
    [choice] = caller.post("/v1/chat/completions", json=question(tools=[TOOL])).json()["choices"]
    calls = choice["message"].pop("tool_calls", [])
    assert choice["message"] | {"calls": len(calls)} == {"role": "assistant"} | message
    assert choice["finish_reason"] == reason
    assert all(json.loads(call["function"]["arguments"]) == {"at": "Oban"} for call in calls)
    assert all((call["type"], call["function"]["name"]) == ("function", "tide") and call["id"] for call in calls)
    parts, ended = deltas(caller.post("/v1/chat/completions", json=question(tools=[TOOL], stream=True)))
    assert "".join(part.get("content") or "" for part in parts) == (message["content"] or "")
    assert "".join(part.get("reasoning_content", "") for part in parts) == message.get("reasoning_content", "")
    streamed = [call for part in parts for call in part.get("tool_calls", [])]
    assert [(call["index"], call["function"]) for call in streamed] == [
        (i, call["function"]) for i, call in enumerate(calls)
    ]
    assert ended == reason
    worker.join()


def test_a_long_reasoning_is_streamed_while_it_is_written(script: Script, qwen3: Template) -> None:
    worker = GenerationWorker(script, qwen3.stop_ids)  # type: ignore[arg-type]
    spoken(script, qwen3, "<think>\n" + "one two three " * 20 + "\n</think>\n\nDone")
    script.pause = 0.005
    parts, _ = deltas(
        application(worker, qwen3, Guard(False, None)).post("/v1/chat/completions", json=question(stream=True))
    )
    thoughts = [part["reasoning_content"] for part in parts if "reasoning_content" in part]
    assert "".join(thoughts).strip() == ("one two three " * 20).strip()
    assert len(thoughts) > 1
    assert [part["content"] for part in parts if part.get("content")] == ["Done"]
    worker.join()
