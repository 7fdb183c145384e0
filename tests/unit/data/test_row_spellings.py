"""What each spelling of a turn, a mask, a call or tokens is read as, field by field; and what is refused, by name."""

from pathlib import Path
from typing import Any

import pytest

from rows import examples, sources, write_rows
from strop.data.examples import Alpaca, Conversation, Example, Fault, Message, Row, Text, Tokens, ToolCall
from strop.data.sources import read_examples
from strop.errors import DataError

Values = dict[str, Any]
ASKED, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
Q, A = Message("user", "Q"), Message("assistant", "A")
CONTEXT = Message("assistant", "A", learned=False)
CALL = ToolCall("f", {"a": 1}, "c1")


def read(folder: Path, row: Row) -> Example | Fault:
    [found] = examples(write_rows(folder / "train.jsonl", [row]))
    return found


def asked(**answer: Any) -> Values:
    """A row of a question and its answer, which has these keys more."""
    return {"messages": [ASKED, {**SAID, **answer}]}


def results_of_a_call(turn: Values) -> Values:
    call = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}]}
    return {"messages": [ASKED, call, turn, SAID]}


TURNS: dict[str, tuple[Values, list[Message]]] = {
    "a developer is the system": (
        {"messages": [{"role": "developer", "content": "S"}, ASKED, SAID]},
        [Message("system", "S"), Q, A],
    ),
    "an answer of the turns before that is hidden": (
        {"messages": [ASKED, {**SAID, "masked": True}, ASKED, SAID]},
        [Q, CONTEXT, Q, A],
    ),
    "a row's mask that leaves an answer out": (
        {"messages": [ASKED, SAID, ASKED, SAID], "loss_mask": [0, 0, 0, 1]},
        [Q, CONTEXT, Q, A],
    ),
    "a row's mask that hides": ({"messages": [ASKED, SAID, ASKED, SAID], "masked": [1, 1, 1, 0]}, [Q, CONTEXT, Q, A]),
    "two masks of a row that agree": (
        {"messages": [ASKED, SAID, ASKED, SAID], "train": [0, 0, 0, 1], "masked": [1, 1, 1, 0]},
        [Q, CONTEXT, Q, A],
    ),
    "two masks of a turn that agree": (
        {"messages": [ASKED, {**SAID, "train": False, "masked": True}, ASKED, SAID]},
        [Q, CONTEXT, Q, A],
    ),
    "masks as the cells of a table have them": (
        {"messages": [ASKED, {**SAID, "weight": "0.0"}, ASKED, {**SAID, "weight": "1.0"}]},
        [Q, CONTEXT, Q, A],
    ),
    "a loss of true": ({**asked(), "loss": True}, [Q, A]),
    "a loss as logs have it": ({**asked(), "loss": 0.25}, [Q, A]),
    "the result of a call by its id": (
        results_of_a_call({"role": "tool", "content": "R", "tool_call_id": "c1", "name": "f"}),
        [
            Q,
            Message("assistant", "", tool_calls=(CALL,)),
            Message("tool", "R", name="f", tool_call_id="c1", learned=False),
            A,
        ],
    ),
    "results among the parts of a question, which come before its text": (
        results_of_a_call(
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": {"ü": 1}},
                    {"type": "text", "text": "Q"},
                    {"type": "text", "text": "?"},
                ],
            }
        ),
        [
            Q,
            Message("assistant", "", tool_calls=(CALL,)),
            Message("tool", '{"ü": 1}', tool_call_id="c1", learned=False),
            Message("user", "Q?"),
            A,
        ],
    ),
    "a call among the parts, with its id": (
        asked(
            content=[{"type": "text", "text": "A"}, {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]
        ),
        [Q, Message("assistant", "A", tool_calls=(CALL,))],
    ),
    "a call as OpenAI wrote it first": (
        asked(content=None, function_call={"name": "f", "arguments": '{"a": 1}'}),
        [Q, Message("assistant", "", tool_calls=(ToolCall("f", {"a": 1}),))],
    ),
    "the text of a turn that is a call": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            ]
        },
        [Q, Message("assistant", "", tool_calls=(ToolCall("f", {"a": 1}),))],
    ),
    "Gemini's thoughts": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "Q"}]},
                {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "A"}]},
            ]
        },
        [Q, Message("assistant", "A", reasoning="hm")],
    ),
    "reasoning by the type of its part": (
        asked(content=[{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "A"}]),
        [Q, Message("assistant", "A", reasoning="hm")],
    ),
    "the same reasoning under two names": (
        asked(reasoning="hm", thinking="hm"),
        [Q, Message("assistant", "A", reasoning="hm")],
    ),
    "a prompt of turns, whose answers are context": (
        {"prompt": [ASKED, SAID, ASKED], "completion": "A"},
        [Message("user", "Q", learned=False), CONTEXT, Message("user", "Q", learned=False), A],
    ),
    "a completion that begins with its prompt": (
        {"prompt": [ASKED], "completion": [ASKED, SAID]},
        [Message("user", "Q", learned=False), A],
    ),
    "a history of pairs, in order and learned": (
        {"instruction": "Q", "output": "A", "history": [["Q1", "A1"], ["Q2", "A2"]]},
        [Message("user", "Q1"), Message("assistant", "A1"), Message("user", "Q2"), Message("assistant", "A2"), Q, A],
    ),
    "turns after the last answer, left out": ({"messages": [ASKED, SAID, ASKED]}, [Q, A]),
    "a system message in its own column": ({**asked(), "system": "S"}, [Message("system", "S"), Q, A]),
    "the same system message twice": (
        {"messages": [{"role": "system", "content": "S"}, ASKED, SAID], "system": "S"},
        [Message("system", "S"), Q, A],
    ),
}


def as_read(message: Message) -> tuple[Any, ...]:
    """A message without what has no meaning: whether a turn that is no answer is learned."""
    return (
        message.role,
        message.content,
        message.reasoning,
        message.tool_calls,
        message.name,
        message.tool_call_id,
        message.role == "assistant" and message.learned,
    )


@pytest.mark.parametrize("what", TURNS)
def test_turns(tmp_path: Path, what: str) -> None:
    row, wanted = TURNS[what]
    found = read(tmp_path, row)
    assert isinstance(found, Conversation), found
    assert [as_read(message) for message in found.messages] == [as_read(message) for message in wanted]


SCHEMA = {"type": "object"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "declared",
    [
        {"tools": [TOOL]},
        {"functions": [TOOL["function"]]},
        {"tools": [{"name": "f", "input_schema": SCHEMA}]},
        {"tools": [{"functionDeclarations": [TOOL["function"]]}]},
        {"toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": SCHEMA}}}]}},
    ],
)
def test_declared_tools(tmp_path: Path, declared: Values) -> None:
    for row in (asked(), {"instruction": "Q", "output": "A"}):
        found = read(tmp_path, {**row, **declared})
        assert isinstance(found, Conversation)
        assert found.tools == (TOOL,)


ROWS: dict[str, tuple[Values, Example]] = {
    "labels": (
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        Tokens((5, 6, 7, 8), (False, False, True, True)),
    ),
    "a mask": (
        {"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 0, 1]},
        Tokens((5, 6, 7, 8), (False, True, False, True)),
    ),
    "two masks, and both must agree to learn": (
        {"input_ids": [5, 6, 7, 8], "assistant_masks": [0, 1, 1, 0], "completion_mask": [0, 0, 1, 1]},
        Tokens((5, 6, 7, 8), (False, False, True, False)),
    ),
    "labels and a mask": (
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8], "loss_mask": [1, 0, 1, 1]},
        Tokens((5, 6, 7, 8), (False, False, True, True)),
    ),
    "padding on both sides": (
        {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0]},
        Tokens((5, 6), (True, True)),
    ),
    "one length, of all": ({"input_ids": [5, 6], "seq_lengths": [2]}, Tokens((5, 6), (True, True))),
    "no ids at all beside a text": ({"input_ids": [], "text": "T"}, Text("T")),
    "an input beside a question": ({"question": "Q", "input": "I", "output": "A"}, Alpaca("Q", "I", "A")),
    "an input alone is the question": ({"input": "Q", "output": "A"}, Alpaca("Q", "", "A")),
    "a column without a value": ({"question": "Q", "prompt": None, "completion": "A"}, Alpaca("Q", "", "A")),
    "a class beside an instruction": ({"instruction": "Q", "output": "A", "label": 0}, Alpaca("Q", "", "A")),
    "an answer marked as good": ({"instruction": "Q", "output": "A", "label": True}, Alpaca("Q", "", "A")),
}


@pytest.mark.parametrize("what", ROWS)
def test_other_rows(tmp_path: Path, what: str) -> None:
    row, wanted = ROWS[what]
    assert read(tmp_path, row) == wanted


def test_the_rows_own_system_message_comes_before_the_recipes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{**asked(), "system": "S"}, asked()])
    found = list(read_examples(sources(path), "R"))
    assert [row.example.messages[0].content for row in found if isinstance(row, Row)] == ["S", "R"]


def test_a_mark_that_says_what_is_so_anyway_is_used(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{**asked(), "label": label} for label in (True, "true", "good")])
    assert [row.unused for row in read_examples(sources(path))] == [(), (), ("label",)]


REFUSED: dict[str, tuple[Values, str]] = {
    "masks of a turn that do not agree": (
        asked(train=True, masked=True),
        "contradiction: 'train' and 'masked' in turn 2",
    ),
    "masks of a row that do not agree": (
        {"messages": [ASKED, SAID], "train": [0, 1], "loss_mask": [0, 0]},
        "contradiction: 'loss_mask' does not agree",
    ),
    "a mask with too few values": ({**asked(), "loss_mask": [1]}, "mask does not fit: 'loss_mask' has 1 values for 2"),
    "a mask with too many": ({**asked(), "loss_mask": [0, 1, 1]}, "mask does not fit: 'loss_mask' has 3 values for 2"),
    "a mask that wants a question learned": (
        {"messages": [ASKED, SAID], "train": [1, 1]},
        "not an answer: the row's mask asks for turn 1 from user",
    ),
    "a question that asks to be learned": (
        {"messages": [{**ASKED, "train": True}, SAID]},
        "not an answer: the turn from user in turn 1",
    ),
    "a row that is not to be learned": ({**asked(), "loss": False}, "not to be learned: 'loss' is false"),
    "a weight between": (asked(weight=0.5), "weight 0.5: 'weight' in turn 2"),
    "an undesirable answer as text": (
        {"prompt": "Q", "completion": "A", "label": "False"},
        "undesirable answer: 'label' is 'False'",
    ),
    "an undesirable answer of an instruction": (
        {"instruction": "Q", "output": "A", "label": False},
        "undesirable answer: 'label' is false",
    ),
    "a channel that is no answer": (asked(channel="analysis"), "not supported: 'channel' is 'analysis' in turn 2"),
    "two texts of reasoning": (asked(reasoning="hm", thinking="ha"), "contradiction: two different texts of reasoning"),
    "parts in an order that no template writes": (
        asked(content=[{"type": "text", "text": "A"}, {"type": "thinking", "thinking": "hm"}]),
        "order of the parts:",
    ),
    "a call of something else": (
        asked(tool_calls=[{"type": "custom", "function": {"name": "f"}}]),
        "bad tool call: type 'custom' in turn 2",
    ),
    "two system messages": (
        {"messages": [{"role": "system", "content": "S"}, ASKED, SAID], "system": "R"},
        "two system messages: 'system' and the first turn",
    ),
    "only the first token is learned, which nothing predicts": (
        {"input_ids": [5, 6], "labels": [5, -100]},
        "not to be learned: no token",
    ),
    "several lengths": ({"input_ids": [5, 6], "seq_lengths": [1, 1]}, "packed: 'seq_lengths'"),
    "an attention mask that counts samples": (
        {"input_ids": [5, 6], "attention_mask": [1, 2]},
        "packed: 'attention_mask'",
    ),
    "a label that is another token": ({"input_ids": [5, 6], "labels": [-100, 7]}, "bad labels:"),
    "a better and a worse answer": ({**asked(), "chosen": "A", "rejected": "B"}, "preference rows: 'chosen'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_row_is_refused_by_name(tmp_path: Path, what: str) -> None:
    row, reason = REFUSED[what]
    found = read(tmp_path, row)
    assert isinstance(found, Fault), found
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Q", "prompt": "P", "answer": "A", "response": "B"}, "two columns for one part: 'prompt' and"),
        ({"text": "T", "summary": "S"}, "a document or a pair: the row has 'text' and 'summary'"),
    ],
)
def test_columns_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, row: Values, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(tmp_path, row)
