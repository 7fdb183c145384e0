"""The served prompt is the training prompt, token for token, or the request is refused."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from real_templates import NAMES, tokenizer_folder
from strop.data import template as data_template
from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion
from strop.data.prompts import INPUT
from strop.data.rows.columns import shape_of
from strop.data.rows.shapes import RowReader
from strop.data.template import Template
from strop.serving.prompting import chat_prompt, read_question, text_prompt
from strop.serving.requests import ApiError, ChatRequest, parse
from template_rows import MASKS, rows

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def load_template(folder: Path, name: str, format: Any, **others: Any) -> Template:
    return data_template.load_template(folder, name, [format], **others)


def asked(template: Template, messages: Any, **parameters: Any) -> list[int]:
    """The ids that a request's answer starts from."""
    body = json.dumps({"model": "mine", "messages": messages} | parameters).encode()
    return chat_prompt(template, read_question(template, parse(body, ChatRequest)))


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned_prompt(template: Template, example: Example) -> list[int]:
    """What training puts before the last answer."""
    [[encoded]] = template.encode([example])
    last = int(encoded.learned.nonzero()[0][-1])
    while encoded.learned[last - 1]:
        last -= 1
    return [int(token) for token in encoded.input_ids[:last]]


@pytest.mark.parametrize("folder", [PHI3, SMOLLM2], ids=lambda folder: folder.name)
def test_a_conversation_is_served_as_it_is_trained(folder: Path) -> None:
    template = load_template(folder, "chat", "messages")
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "2+2?")]
    row = Conversation(tuple(Message(role, text) for role, text in [*turns, ("assistant", "4")]))  # type: ignore[arg-type]
    assert asked(template, said(*turns)) == learned_prompt(template, row)
    assert asked(template, said(turns[0])) != learned_prompt(template, row)


def test_a_system_message_is_served_as_it_is_trained() -> None:
    template = load_template(SMOLLM2, "chat", "messages")
    turns = [("system", "Be brief."), ("user", "2+2?")]
    row = Conversation(tuple(Message(role, text) for role, text in [*turns, ("assistant", "4")]))  # type: ignore[arg-type]
    assert asked(template, said(*turns)) == learned_prompt(template, row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", Alpaca("Add.", "2 and 2", "4")),
        ("alpaca", Alpaca("Add.", "", "4")),
        ("alpaca", Alpaca("Add them.\n\nThey are 2 and 2.", "", "4")),
        ("alpaca", Alpaca("Add them.\n\nThey follow.", "2\n\nand 2", "4")),
        ("alpaca", Alpaca(f"Add.{INPUT}2 and 2", "", "4")),
        ("alpaca", Alpaca(f"Add.{INPUT}2 and 2", "and 3", "7")),
        ("chat", Alpaca("A", "b", "4")),
    ],
)
def test_an_alpaca_row_is_served_as_it_is_trained(name: str, row: Alpaca) -> None:
    template = load_template(PHI3, name, "alpaca")
    question = row.instruction + (f"{INPUT if name == 'alpaca' else chr(10) * 2}{row.input}" if row.input else "")
    assert asked(template, said(("user", question))) == learned_prompt(template, row)


def test_a_plain_prompt_is_served_as_it_is_trained() -> None:
    template = load_template(PHI3, "plain", "prompt_completion")
    expected = learned_prompt(template, PromptCompletion("Q: 2+2? A:", " 4"))
    assert asked(template, said(("user", "Q: 2+2? A:"))) == expected
    assert text_prompt(template, "Q: 2+2? A:", 32064) == expected
    assert text_prompt(template, ["Q: 2+2? A:"], 32064) == expected
    assert text_prompt(template, expected, 32064) == expected


@pytest.mark.parametrize(
    ("name", "turns", "param"),
    [
        ("chat", [("user", "a"), ("assistant", "b")], "messages"),
        ("chat", [("system", "a")], "messages"),
        ("chat", [("user", "")], "messages"),
        ("chat", [("bot", "a")], "messages.0.role"),
        ("alpaca", [("system", "a"), ("user", "b")], "messages"),
        ("alpaca", [("user", "a"), ("assistant", "b"), ("user", "c")], "messages"),
        ("plain", [("assistant", "a")], "messages"),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(name: str, turns: list[tuple[str, str]], param: str) -> None:
    template = load_template(SMOLLM2, name, {"chat": "messages", "alpaca": "alpaca", "plain": "text"}[name])  # type: ignore[arg-type]
    with pytest.raises(ApiError) as refused:
        asked(template, said(*turns))
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_real_templates_are_served_as_they_are_trained(name: str, tmp_path: Path) -> None:
    """Sent in OpenAI's spelling: arguments as text, null beside calls."""
    template, compared = data_template.load_template(tokenizer_folder(name, tmp_path), "chat", ["messages"]), 0
    for row in rows(name, 7, 30):
        shape = shape_of(row)
        assert shape is not None
        example = RowReader(shape).read(row)[0]
        assert isinstance(example, Conversation)
        if name == "mistral-v0.3" and example.messages[0].role == "system":
            continue  # its template leaves some system messages out
        sent = [{key: value for key, value in turn.items() if key not in MASKS} for turn in row["messages"]]
        for turn in sent:
            turn |= {"reasoning": turn.pop("thinking")} if "thinking" in turn else {}
            for call in turn.get("tool_calls") or []:
                arguments = call["function"]["arguments"]
                call["function"]["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments)
        before = sent[: len(example.messages) - 1]
        others = {key: row[key] for key in ("tools", "documents") if key in row}
        assert asked(template, before, **others) == template.encode_prompt(example), row
        compared += 1
    assert compared > 10


TOOL = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {}}}
CALLED = {"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": "{}"}}
OPENAIS = {"refusal": None, "annotations": [], "audio": None, "function_call": None}


def test_an_answer_comes_back_as_openais_client_has_it(tmp_path: Path) -> None:
    """What a client sends back with an answer, null or empty, is no fault; developer is the newer name of system."""
    template = load_template(tokenizer_folder("qwen3", tmp_path), "chat", "messages")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [CALLED]}]
    result = {"role": "tool", "tool_call_id": "call00001", "name": "tide", "content": [{"type": "text", "text": "3"}]}
    plain = asked(template, [{"role": "system", "content": "S"}, *turns, result], tools=[TOOL])
    dressed = [turns[0], turns[1] | OPENAIS, result]
    assert asked(template, [{"role": "developer", "content": "S"}, *dressed], tools=[TOOL], tool_choice="auto") == plain
    assert asked(template, turns[:1], tools=[TOOL], tool_choice="none") == asked(template, turns[:1], tools=[])
    assert asked(template, turns[:1], tools=[TOOL]) != asked(template, turns[:1])
    quiet = asked(template, turns[:1], chat_template_kwargs={"enable_thinking": False})
    row = Conversation((Message("user", "Hi"),), template_kwargs={"enable_thinking": False})
    assert quiet == template.encode_prompt(row) != asked(template, turns[:1], chat_template_kwargs={})


@pytest.mark.parametrize(
    ("changes", "param", "reason"),
    [
        ({"tool_choice": "required"}, "tool_choice", "a call cannot be forced"),
        ({"tool_choice": {"type": "function", "function": {"name": "tide"}}}, "tool_choice", "a call cannot be forced"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "cannot be forced"),
        ({"chat_template_kwargs": {"no_such_value": True}}, "messages", "no_such_value"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "away from training's"),
        ({"functions": [{"name": "tide"}]}, "functions", "write tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not forced"),
        ({"tools": [{"type": "web_search"}]}, "tools", "no function with a name"),
        ({"tools": [{}]}, "tools", "empty"),
        ({"documents": [{"title": "t", "text": "x"}]}, "messages", "the request's documents"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "messages", "name"),
        (
            {"messages": [{"role": "user", "content": "a", "weight": 0}]},
            "messages.0.weight",
            "means nothing to strop serve",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", ""),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALLED]}]}, "messages", "turn from user"),
        ({"messages": [{"role": "tool", "content": None}]}, "messages", "null"),
    ],
)
def test_what_strop_cannot_do_is_refused_by_name(
    changes: dict[str, Any], param: str, reason: str, tmp_path: Path
) -> None:
    template = load_template(tokenizer_folder("qwen3", tmp_path), "chat", "messages")
    with pytest.raises(ApiError) as refused:
        asked(template, **({"messages": said(("user", "a"))} | changes))
    assert (refused.value.status, refused.value.param) == (400, param)
    assert reason in str(refused.value)


@pytest.mark.parametrize("parameter", [{"tools": [TOOL]}, {"documents": [{"text": "x"}]}])
def test_templates_without_a_place_for_tools_say_so(parameter: dict[str, Any]) -> None:
    """In a chat template that leaves them out, and in one that is not the model's own."""
    for name, format in (("chat", "messages"), ("alpaca", "alpaca")):
        with pytest.raises(ApiError, match=r"tools|documents"):
            asked(load_template(SMOLLM2, name, format), said(("user", "a")), **parameter)


def test_trainings_system_message_is_that_of_messages_without_one() -> None:
    template = load_template(SMOLLM2, "chat", "messages", system="Be brief.")
    bare = load_template(SMOLLM2, "chat", "messages")
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "2+2?")]
    assert asked(template, said(*turns)) == asked(bare, said(("system", "Be brief."), *turns))
    assert asked(template, said(("system", "Sing."), *turns)) == asked(bare, said(("system", "Sing."), *turns))
    assert asked(template, said(*turns)) != asked(bare, said(*turns))


def test_a_template_that_drops_the_system_message_is_not_silent_about_it(tmp_path: Path) -> None:
    shutil.copytree(SMOLLM2, tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = load_template(tmp_path / "t", "chat", "messages")
    assert asked(template, said(("user", "b")))
    with pytest.raises(ApiError, match="leaves out the system message"):
        asked(template, said(("system", "a"), ("user", "b")))


@pytest.mark.parametrize("prompt", [[], "", [32064], [-1], ["a", "b"], [True]])
def test_a_completion_prompt_is_one_text_or_ids(prompt: list[int] | str) -> None:
    template = load_template(SMOLLM2, "plain", "text")
    with pytest.raises(ApiError) as refused:
        text_prompt(template, prompt, 1 if prompt == [True] else 32064)
    assert refused.value.param == "prompt"
