"""Bodies: what is refused and in which words, what asks for nothing, and what is too large to be read at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from strop.data.template import Template, load_template
from strop.serving.parameters import UNSUPPORTED
from strop.serving.prompting import check_length
from strop.serving.requests import ApiError, ChatRequest, CompletionRequest, GenerationRequest, parse

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"
KINDS: dict[str, type[GenerationRequest]] = {"chat": ChatRequest, "completions": CompletionRequest}
OPENAI = {
    "chat": """audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
        metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort
        response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice
        tools top_logprobs top_p user verbosity web_search_options""",
    "completions": """best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
        stream_options suffix temperature top_p user""",
}
"""All optional parameters of OpenAI's reference, November 2026."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_template(SMOLLM2, "chat", ["messages"])


def body(endpoint: str, **changes: Any) -> bytes:
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == "chat" else {"prompt": "Hi"}
    return json.dumps({"model": "mine"} | asked | changes).encode()


def refused(endpoint: str, **changes: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse(body(endpoint, **changes), KINDS[endpoint])
    return error.value


EVERY = [(endpoint, name) for endpoint, names in OPENAI.items() for name in names.split()]
LACKING = [(endpoint, name) for endpoint, names in UNSUPPORTED.items() for name in names]


@pytest.mark.parametrize(("endpoint", "name"), EVERY)
def test_every_parameter_of_openais_is_known(endpoint: str, name: str) -> None:
    assert (name in KINDS[endpoint].model_fields) != (name in UNSUPPORTED[endpoint])  # type: ignore[index]
    parse(body(endpoint, **{name: None}), KINDS[endpoint])


@pytest.mark.parametrize(("endpoint", "name"), LACKING)
def test_what_is_not_supported_is_said_so_with_what_to_do(endpoint: str, name: str) -> None:
    for value in ("yes please", 0.5, 17, [1], {"a": 1}, "0", -0.25):
        error = refused(endpoint, **{name: value})
        assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
        assert str(error).startswith(f"{name} is not supported by strop serve: ")
        assert "leave it out" in str(error)


@pytest.mark.parametrize(("endpoint", "name"), LACKING)
def test_a_value_that_asks_for_nothing_is_accepted(endpoint: str, name: str) -> None:
    for value in (None, *UNSUPPORTED[endpoint][name].neutral):  # type: ignore[index]
        parse(body(endpoint, **{name: value}), KINDS[endpoint])


@pytest.mark.parametrize(
    ("endpoint", "name", "value", "message"),
    [
        (
            "chat",
            "frequency_penalty",
            0.5,
            "sampled by temperature and top_p alone; leave it out or send 0",
        ),
        ("chat", "presence_penalty", False, "leave it out or send 0"),
        ("chat", "n", True, "leave it out or send 1"),
        ("chat", "logprobs", True, "leave it out or send false"),
        ("chat", "logprobs", 0, "leave it out or send false"),
        ("chat", "response_format", {"type": "json_object"}, 'send {"type": "text"}'),
        ("chat", "functions", [{"name": "f"}], "write tools"),
        ("chat", "function_call", "auto", 'send "none"'),
        ("completions", "logprobs", 0, "log-probabilities are not returned"),
        ("completions", "suffix", "end", 'send ""'),
        ("completions", "messages", [], "leave it out"),
        ("chat", "no_such_thing", 1, "leave it out"),
    ],
)
def test_the_words_of_a_refusal(endpoint: str, name: str, value: Any, message: str) -> None:
    assert message in str(refused(endpoint, **{name: value}))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"tools": json.loads("[" * 70 + "]" * 70)}, 400),
        ({"user": json.loads('{"a":' * 64 + "1" + "}" * 64)}, 400),
        ({"documents": [{}] * 100_001}, 413),
    ],
)
def test_what_would_take_long_is_not_looked_at(changes: dict[str, Any], status: int) -> None:
    error = refused("chat", **changes)
    assert error.status == status
    assert "levels deep" in str(error) or "brackets" in str(error)


LONG = {
    "a text": {"messages": [{"role": "user", "content": "word stone river " * 100_000}]},
    "a text without a space": {"messages": [{"role": "user", "content": "ab" * 400_000}]},
    "many turns": {"messages": [{"role": "user", "content": "a"}] * 20_000},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a stone "}] * 20_000}]},
    "tools": {"messages": [], "tools": [{"function": {"description": "a stone " * 50_000}}]},
    "documents": {"messages": [], "documents": [{"text": "a stone " * 50_000}]},
}


@pytest.mark.parametrize("changes", LONG.values(), ids=LONG)
def test_a_prompt_far_over_the_context_is_not_tokenised(
    changes: dict[str, Any], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, encode = [], Template.encode_text
    monkeypatch.setattr(Template, "encode_text", lambda self, text: read.append(len(text)) or encode(self, text))
    request = ChatRequest.model_construct(**{"model": "mine"} | changes)
    with pytest.raises(ApiError, match=r"more than 4,000 tokens.*context is 4,000 tokens") as error:
        check_length(template, request, 4000)
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
    assert sum(read) <= 100_000


@pytest.mark.parametrize("count", [1, 3990, 4000])
def test_what_may_fit_the_context_is_let_through(count: int, template: Template) -> None:
    ids = template.encode_text("word stone river, and a lantern of copper. " * 1000)[:count]
    text = template.decode(ids)
    check_length(template, parse(body("completions", prompt=text), CompletionRequest), 4000)
    check_length(template, parse(body("completions", prompt=ids), CompletionRequest), 4000)
