"""Nothing that a row says is dropped in silence: keys that are not used are named once, at any depth; empty ones never.

Each row here is changed at random places, always the same ones.
"""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rows import CHATML, sources, write_rows
from strop.data.examples import Conversation, Row
from strop.data.sources import read_examples
from strop.data.template import Encoded, Template, load_template

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"
TIMES = 40  # that each row is changed in each test


@dataclass
class AsText:
    """A value that the row has as JSON text."""

    value: Any


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
OPENAI_TOOLS = [{"type": "function", "function": TOOL}]
CALL = {"name": "f", "arguments": {"a": "x"}}

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "i", "input": "n", "output": "o"},
    "question and answer": {"question": "i", "answer": "o", "context": "c"},
    "system and history": {"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]]},
    "history of turns": {"instruction": "i", "output": "o", "history": [user("a"), assistant("b")]},
    "messages": {"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")]},
    "messages as text": {"messages": AsText([user("a"), assistant("b", tool_calls=[CALL])])},
    "masks": {"messages": [user("a"), assistant("b", weight=0), user("c"), assistant("d", train=True)]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
    "sharegpt calls": {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": AsText({"name": "f", "arguments": {"a": "x"}})},
            {"from": "observation", "value": "r"},
            {"from": "function_call", "value": AsText([CALL, CALL])},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": AsText([TOOL]),
    },
    "openai": {
        "messages": [
            user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
            assistant(None, tool_calls=[{"id": "c1", "type": "function", "function": CALL}] * 2),
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "r"},
            assistant("b", reasoning_content="t"),
        ],
        "tools": OPENAI_TOOLS,
    },
    "legacy": {"messages": [user("a"), assistant("b", function_call=CALL)], "functions": [TOOL]},
    "anthropic": {
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            user("a"),
            assistant(
                [
                    {"type": "thinking", "thinking": "t"},
                    {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": "x"}},
                ]
            ),
            user(
                [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "c"},
                ]
            ),
            assistant("d"),
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    },
    "bedrock": {
        "system": [{"text": "s"}],
        "messages": [
            user([{"text": "a"}]),
            assistant(
                [
                    {"reasoningContent": {"reasoningText": {"text": "t"}}},
                    {"text": "b"},
                    {"toolUse": {"toolUseId": "c1", "name": "f", "input": {"a": "x"}}},
                ]
            ),
            user([{"toolResult": {"toolUseId": "c1", "content": [{"json": {"r": 1}}, {"text": "r"}]}}]),
            assistant([{"text": "d"}]),
        ],
        "toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}]},
    },
    "gemini": {
        "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "a"}]},
            {"role": "model", "parts": [{"text": "t", "thought": True}, {"functionCall": {"name": "f", "args": {}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": 1}}}]},
            {"role": "model", "parts": [{"text": "b"}]},
        ],
        "tools": [{"functionDeclarations": [TOOL]}],
    },
    "prompt and completion": {"prompt": "a", "completion": "b", "label": True},
    "turns as prompt and completion": {"prompt": [user("a")], "completion": [assistant("b")]},
    "turns as prompt": {"prompt": [user([{"type": "text", "text": "a"}])], "completion": "b"},
    "documents": {"messages": [user("a"), assistant("b")], "documents": [{"title": "T", "text": "D"}]},
    "text": {"text": "a document"},
    "tokens": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]},
}
WHOLE = {"tools", "functions", "documents", "arguments", "args", "input", "response", "json"}
"""What is passed on as it is, with all of its keys."""

VALUES: list[Any] = [0, 7, 0.5, False, True, "a", "null", ["a"], [0], {"a": 1}, [[]], {"b": None}]
EMPTY: list[Any] = [None, "", [], {}]
NAMES = ["source", "index", "meta data", "Ünïcode", "created.at", "x[]", "score", "lang", "uuid", "split_name"]
KNOWN_BELOW = (
    *("type", "id", "function", "parameters", "arguments", "args", "thought", "thinking", "text", "image_url", "json"),
    *("functionCall", "toolUse", "toolResult", "tool_use_id", "reasoningContent", "cache_control"),
)
KNOWN_IN_ROWS = (
    *("system", "tools", "functions", "toolConfig", "documents", "chat_template_kwargs", "images", "videos", "chosen"),
    *("rejected", "label", "kto_tag", "weight", "train", "loss_mask", "assistant_masks", "masked", "history", "input"),
    *("messages", "conversations", "input_ids", "labels", "segments"),
)
KNOWN_IN_TURNS = (
    *("tool_calls", "function_call", "tool_call_id", "name", "weight", "train", "masked", "mask", "train_detail"),
    *("reasoning_content", "reasoning", "thinking", "image", "audio", "refusal", "channel", "value", "parts", "from"),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_template(SMOLLM2, "chat", ["messages"], chat_template=CHATML)


def places(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a row that is read key by key, and the path to it."""
    if isinstance(value, AsText):
        yield from places(value.value, path)
    elif isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            if key not in WHOLE:
                yield from places(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from places(inner, f"{path}[]")


def as_line(row: dict[str, Any]) -> str:
    return json.dumps(row, default=lambda text: as_line(text.value))


def read(folder: Path, rows: list[dict[str, Any]]) -> list[Row]:
    """The rows as they are read, of the shape of the first."""
    found = list(read_examples(sources(write_rows(folder / "rows.jsonl", map(as_line, rows)))))
    assert [row for row in found if not isinstance(row, Row)] == []
    return found  # type: ignore[return-value]


def tokens(template: Template, rows: list[Row]) -> list[list[tuple[list[int], list[bool]]]]:
    encoded: list[list[Encoded]] = template.encode([row.example for row in rows])
    return [[(one.input_ids.tolist(), one.learned.tolist()) for one in samples] for samples in encoded]


def changed(row: dict[str, Any], rng: random.Random, names: list[str], values: list[Any]) -> tuple[dict[str, Any], str]:
    """A row with one key more, and the path to it."""
    row = copy.deepcopy(row)
    path, place = rng.choice(list(places(row)))
    key = rng.choice([name for name in names if name not in place])
    place[key] = copy.deepcopy(rng.choice(values))
    return row, f"{path}.{key}" if path else key


@pytest.mark.parametrize("name", ROWS)
def test_an_unknown_key_is_named_once_and_changes_nothing(tmp_path: Path, template: Template, name: str) -> None:
    rng = random.Random(name)
    variants, paths = zip(*(changed(ROWS[name], rng, NAMES, VALUES) for _ in range(TIMES)), strict=True)
    plain, *found = read(tmp_path, [ROWS[name], *variants])
    assert plain.unused == ()
    assert [row.unused for row in found] == [(path,) for path in paths]
    [expected, *others] = tokens(template, [plain, *found])
    assert others == [expected] * TIMES


@pytest.mark.parametrize("name", ROWS)
def test_an_empty_key_is_no_fault_and_is_not_named(tmp_path: Path, template: Template, name: str) -> None:
    rng = random.Random(name)
    variants = [changed(ROWS[name], rng, [*NAMES, *KNOWN_BELOW], EMPTY)[0] for _ in range(TIMES)]
    plain, *found = read(tmp_path, [ROWS[name], *variants])
    assert [row.unused for row in found] == [()] * TIMES
    [expected, *others] = tokens(template, [plain, *found])
    assert others == [expected] * TIMES


@pytest.mark.parametrize("value", EMPTY, ids=repr)
@pytest.mark.parametrize("name", ROWS)
def test_an_empty_key_that_means_something_says_nothing(
    tmp_path: Path, template: Template, name: str, value: Any
) -> None:
    """As Parquet fills the keys that only other rows have; on every first row of a file."""
    row = ROWS[name]
    rows = [row | {key: value} for key in KNOWN_IN_ROWS if key not in row]
    turns = next((key for key in ("messages", "conversations") if isinstance(row.get(key), list)), None)
    if turns:
        empty = [{key: value for key in KNOWN_IN_TURNS if key not in turn} for turn in row[turns]]
        rows += [row | {turns: [turn | more for turn, more in zip(row[turns], empty, strict=True)]}]
    [plain] = read(tmp_path, [row])
    [expected] = tokens(template, [plain])
    for variant in rows:
        [found] = read(tmp_path, [variant])
        assert (found.unused, tokens(template, [found])) == ((), [expected]), variant.keys() - row.keys()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "tools" in row or "functions" in row])
def test_declarations_are_passed_on_whole(tmp_path: Path, template: Template, name: str) -> None:
    """Whatever keys they have: the schema's names differ, nothing else does."""
    row = copy.deepcopy(ROWS[name])
    key = "tools" if "tools" in row else "functions"
    declared = row[key].value if isinstance(row[key], AsText) else row[key]
    function = declared[0].get("function") or declared[0].get("functionDeclarations", declared)[0]
    function["strict"] = {"x-unit": "mm"}
    [found] = read(tmp_path, [row])
    assert isinstance(found.example, Conversation)
    [tool] = found.example.tools
    schema = function.get("parameters", function.get("input_schema"))
    own = {key: value for key, value in function.items() if key not in ("parameters", "input_schema")}
    assert tool == {"type": "function", "function": own | {"parameters": schema}}
    assert found.unused == ()
    assert '"x-unit": "mm"' in template.tokenizer.decode(template.encode_prompt(found.example))
