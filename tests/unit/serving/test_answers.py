"""What models write under real chat templates, taken apart again: reasoning, content and calls, whole and streamed."""

import json
import random
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from real_templates import NAMES, tokenizer_folder
from strop.data.examples import Conversation, Message
from strop.data.rows.columns import shape_of
from strop.data.rows.shapes import RowReader
from strop.data.template import Template, load_template
from strop.serving.answers import AnswerReader, Said
from strop.serving.growing import GrowingText
from strop.serving.markup import Markup
from template_rows import Row, rows

COUNT = 60
REASONING = {"qwen3", "qwen3-2025-04", "qwen3-thinking-2507", "qwq", "r1-distill", "gpt-oss"}
CALLS = {
    *("qwen3", "qwen3-2025-04", "qwen3-thinking-2507", "qwq", "qwen3-instruct-2507", "qwen2.5"),
    *("llama3.1", "llama3.2", "mistral-v0.3", "hermes-3", "gpt-oss"),
}
TOOLS = tuple(
    {
        "type": "function",
        "function": {"name": name, "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("tide", "port")
)
QUESTION = Conversation((Message("user", "Hi"),), TOOLS)


@pytest.fixture(scope="module")
def template_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Template]:
    @cache
    def make(name: str) -> Template:
        return load_template(tokenizer_folder(name, tmp_path_factory.mktemp("tokenizers")), "chat", ["messages"])

    return make


def read(row: Row) -> Conversation:
    shape = shape_of(row)
    assert shape is not None
    example = RowReader(shape).read(row)[0]
    assert isinstance(example, Conversation)
    return example


def answers(template: Template, chat: Conversation) -> list[tuple[Conversation, Message, list[int]]]:
    """Each answer of a row: what it answers, the answer, and the ids that a perfect model generates."""
    found = []
    for k, message in enumerate(chat.messages):
        if message.role == "assistant":
            asked = replace(chat, messages=tuple(replace(m, learned=False) for m in chat.messages[:k]))
            [samples] = template.encode([replace(asked, messages=(*asked.messages, replace(message, learned=True)))])
            ids = [int(i) for i in samples[-1].input_ids[len(template.encode_prompt(asked)) :]]
            found.append((asked, message, ids[:-1]))  # without its stop token
    return found


def expected(message: Message, has_reasoning: bool) -> tuple[str, str]:
    """Reasoning and content, without the whitespace around them."""
    head, closed, tail = message.content.rpartition("</think>")
    if has_reasoning and closed and not message.reasoning:
        return head.strip().removeprefix("<think>").strip(), tail.strip()
    return message.reasoning.strip(), message.content.strip()


def comparable(said: Said) -> str:
    """Parts without the whitespace around them, and in the form that Qwen's tokenizers make of all text."""
    calls = [(call.name, dict(call.arguments)) for call in said.calls]
    text = json.dumps([said.reasoning.strip(), said.content.strip(), calls], ensure_ascii=False)
    return unicodedata.normalize("NFC", text)


def streamed(reader: AnswerReader, ids: list[int], chance: random.Random) -> Said:
    """The answer as a client that listens adds it up; nothing that it was told may be taken back."""
    growing, text, told = GrowingText(reader.decode, ()), "", Said("")
    for token in ids:
        text += growing.add(token)
        if chance.random() < 0.3:
            said = reader.so_far(text)
            assert not said.calls
            assert said.reasoning.startswith(told.reasoning)
            assert said.content.startswith(told.content)
            told = said
    whole = reader.read(text + growing.rest())
    assert whole.reasoning.startswith(told.reasoning)
    assert whole.content.startswith(told.content)
    return whole


@pytest.mark.parametrize("name", NAMES)
def test_what_was_trained_is_read_back(name: str, template_of: Callable[[str], Template]) -> None:
    template, chance, num_calls, num_reasoning = template_of(name), random.Random(name), 0, 0
    markup = Markup(template)
    for row in rows(name, 3, COUNT):
        if name == "mistral-v0.3" and row["messages"][0]["role"] == "system":
            continue  # its template leaves some system messages out
        found = answers(template, read(row))
        for asked, message, ids in found:
            reader = AnswerReader(markup, asked)
            said = streamed(reader, ids, chance)
            declared = {tool["function"]["name"] for tool in asked.tools}
            assert {call.name for call in message.tool_calls} <= declared or not said.calls
            if {call.name for call in message.tool_calls} <= declared:
                reasoning, content = expected(message, name in REASONING)
                parts = Said(content, reasoning, message.tool_calls)
                assert comparable(said) == comparable(parts), row
                num_calls += bool(message.tool_calls)
                num_reasoning += bool(reasoning)
    assert (num_calls > 5) == (name in CALLS)
    assert (num_reasoning > 5) == (name in REASONING)


CALL = '<tool_call>\n{"name": "tide", "arguments": {"at": "Oban", "depth": [1, 2.5]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2.5", CALL.replace("tide", "dive")),  # not one of the tools
        ("qwen2.5", CALL.replace("</tool_call>", "")),
        ("qwen2.5", CALL.replace("}}", "}")),
        ("qwen2.5", CALL.replace("2.5", "NaN")),
        ("qwen2.5", CALL.replace('"arguments": {', '"arguments": "{')),
        ("qwen2.5", CALL.replace('"name"', '"function"')),
        ("qwen2.5", CALL + " That is all."),  # the template writes content before a call only
        ("qwen2.5", "<tool_call>\n" * 2000),
        ("qwen2.5", '{"name": "tide", "arguments": {"at": "Oban"}}'),
        ("llama3.1", CALL),
        ("llama3.1", 'Yes: {"name": "tide", "parameters": {"at": "Oban"}}'),
        (
            "llama3.1",
            '{"name": "tide", "parameters": {"at": "Oban"}} {"name": "tide", "parameters": {}}',
        ),  # one at most
        ("llama3.1", '{"name": "tide", "arguments": {"at": "Oban"}}'),
        ("hermes-3", "Yes.\n" + CALL),  # its template leaves out content beside a call
        ("phi-4-mini", '<|tool_call|>[{"name": "tide", "arguments": {"at": "Oban"}}]<|/tool_call|>'),
        ("mistral-v0.3", '[TOOL_CALLS] [{"name": "tide", "arguments": {"at": "Oban"}, "id": "short"}]'),
        ("smollm2", CALL),
        ("smollm3", "<think>\nA\n</think>\nB"),  # there, reasoning is trained as a part of the content
    ],
)
def test_what_the_template_does_not_write_is_content(
    name: str, text: str, template_of: Callable[[str], Template]
) -> None:
    markup = Markup(template_of(name))
    said = AnswerReader(markup, QUESTION).read(text)
    assert said == Said(text.replace("[TOOL_CALLS]", ""))


@pytest.mark.parametrize(
    ("name", "text", "content", "reasoning", "calls"),
    [
        ("qwen2.5", CALL, "", "", [{"at": "Oban", "depth": [1, 2.5]}]),
        ("qwen2.5", f"Yes.\n{CALL}\n{CALL}\n", "Yes.", "", [{"at": "Oban", "depth": [1, 2.5]}] * 2),
        ("qwen2.5", CALL.replace(": ", ":").replace("\n", ""), "", "", [{"at": "Oban", "depth": [1, 2.5]}]),
        ("qwen3", f"<think>\nWell\n</think>\n\nYes.\n{CALL}", "Yes.", "Well", [{"at": "Oban", "depth": [1, 2.5]}]),
        ("qwen3", f"<think>\n\n</think>\n\n{CALL}", "", "", [{"at": "Oban", "depth": [1, 2.5]}]),
        ("qwen3", "<think>\nWell, so", "", "Well, so", []),  # cut off by max_tokens
        ("qwen3", "Yes.", "Yes.", "", []),
        ("qwen3-thinking-2507", f"Well\n</think>\n\n{CALL}", "", "Well", [{"at": "Oban", "depth": [1, 2.5]}]),
        ("qwen3-thinking-2507", "\n</think>\n\nYes.", "Yes.", "", []),
        ("gpt-oss", "<|channel|>final<|message|>Yes.", "Yes.", "", []),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Well<|end|><|start|>assistant<|channel|>final<|message|>Y",
            "Y",
            "Well",
            [],
        ),
        ("gpt-oss", ' to=functions.tide<|channel|>commentary json<|message|>{"at": "Oban"}', "", "", [{"at": "Oban"}]),
        ("gpt-oss", "<|channel|>analysis<|message|>Well", "", "Well", []),
        ("mistral-v0.3", '[TOOL_CALLS] [{"name": "tide", "arguments": {}, "id": "abcdefgh9"}]', "", "", [{}]),
    ],
)
def test_the_parts_of_an_answer(
    name: str, text: str, content: str, reasoning: str, calls: list[Any], template_of: Callable[[str], Template]
) -> None:
    said = AnswerReader(Markup(template_of(name)), QUESTION).read(text)
    assert (said.content, said.reasoning) == (content, reasoning)
    assert [(call.name, call.arguments) for call in said.calls] == [("tide", arguments) for arguments in calls]
    assert all(len(call.id) == 9 and call.id.isalnum() for call in said.calls)
    if name == "mistral-v0.3":
        assert said.calls[0].id == "abcdefgh9"


def test_without_tools_nothing_is_a_call(template_of: Callable[[str], Template]) -> None:
    reader = AnswerReader(Markup(template_of("qwen2.5")), replace(QUESTION, tools=()))
    assert reader.read(CALL) == reader.so_far(CALL) == Said(CALL)


def test_a_template_that_is_told_not_to_think_is_read_so(template_of: Callable[[str], Template]) -> None:
    """The prompt has closed the reasoning already, so that the answer begins with its call."""
    quiet = {"enable_thinking": False}
    question = replace(QUESTION, template_kwargs=quiet)
    said = AnswerReader(Markup(template_of("qwen3"), quiet), question).read(CALL)
    assert [call.name for call in said.calls] == ["tide"]
    assert not AnswerReader(Markup(template_of("qwen3")), QUESTION).read(CALL).calls


OWN = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}[[{{ m.reasoning_content }}]] "
    "{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %} CALL {{ call.function.name }} WITH "
    "{{ call.function.arguments | tojson }};{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_markup_of_a_template_of_ones_own_is_learned_from_it(tmp_path: Path) -> None:
    template = load_template(tokenizer_folder("smollm2", tmp_path), "chat", ["messages"], chat_template=OWN)
    reader = AnswerReader(Markup(template), QUESTION)
    said = reader.read('[[Well]] Yes. CALL tide WITH {"at": "Oban"}; CALL port WITH {};')
    assert (said.reasoning, said.content) == ("Well", "Yes.")
    assert [(call.name, call.arguments) for call in said.calls] == [("tide", {"at": "Oban"}), ("port", {})]
    assert reader.so_far("[[Well]] Yes. CAL") == Said("Yes.", "Well")
    assert reader.so_far("[[We").reasoning == "We"
    assert reader.so_far("[[Well]").reasoning == "Well"


@pytest.mark.parametrize(
    "text", [" " * 60_000, "<think>\n" + " " * 60_000, "x" + "\n " * 30_000, "<tool_call> " * 3000, "< " * 30_000]
)
@pytest.mark.parametrize("name", ["qwen3", "llama3.1"])
def test_a_long_answer_is_read_in_no_time(name: str, text: str, template_of: Callable[[str], Template]) -> None:
    """Gaps were searched in quadratic time: 60,000 blanks took six seconds."""
    reader, begun = AnswerReader(Markup(template_of(name)), QUESTION), time.process_time()
    reader.so_far(text)
    assert reader.read(text).content.strip() in text
    assert time.process_time() - begun < 1


def test_a_growing_text_is_that_of_all_tokens(template_of: Callable[[str], Template]) -> None:
    """Only the last tokens are decoded again, whatever a decoder drops at the beginning of what it gets."""
    chance = random.Random(0)
    for name in ("phi-3", "zephyr", "qwen3", "llama3.1", "mistral-v0.3", "gpt-oss", "smollm2"):
        template = template_of(name)
        for decode in (template.decode, template.decode_all):
            words = template.encode_text("Two  blanks,\n\n\ta \U0001f600 and é, then 3.5 - 2.\n" * 30)
            ids = [token if chance.random() < 0.9 else chance.randrange(len(template.tokenizer)) for token in words]
            growing = GrowingText(decode, ())
            assert "".join(map(growing.add, ids)) + growing.rest() == decode(ids)
