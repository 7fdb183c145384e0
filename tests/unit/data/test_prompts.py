"""The words of an example: as turns of a chat, as the templates of strop write it, and as its question."""

import pytest

from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Text
from strop.data.prompts import (
    ALPACA,
    ALPACA_WITH_INPUT,
    TemplateName,
    as_question,
    as_segments,
    as_text,
    as_turns,
    question_of,
)

WITH_INPUT, WITHOUT = Alpaca("Q", "I", "A"), Alpaca("Q", "", "A")
CHAT = Conversation(
    (
        Message("user", "Q1"),
        Message("assistant", "A1"),
        Message("user", "Q2"),
        Message("assistant", ""),
        Message("tool", "R"),
        Message("assistant", "A2"),
    )
)


@pytest.mark.parametrize(
    ("example", "question"),
    [(WITH_INPUT, "Q\n\nI"), (WITHOUT, "Q"), (PromptCompletion("Q", "A"), "Q")],
)
def test_a_pair_as_turns(example: Example, question: str) -> None:
    assert as_turns(example) == (Message("user", question), Message("assistant", "A"))


@pytest.mark.parametrize(
    ("name", "example", "segments"),
    [
        ("alpaca", WITH_INPUT, [(ALPACA_WITH_INPUT.format("Q", "I"), False), ("A", True)]),
        ("alpaca", WITHOUT, [(ALPACA.format("Q"), False), ("A", True)]),
        ("plain", PromptCompletion("Q", "A"), [("Q", False), ("A", True)]),
        ("plain", Text("T"), [("T", True)]),
    ],
)
def test_what_is_prompt_and_what_is_answer(name: TemplateName, example: Example, segments: list) -> None:
    assert as_segments(name, example) == segments


@pytest.mark.parametrize(
    ("num_turns", "question"), [(0, "Q2"), (1, "Q1"), (2, "Q1"), (3, "Q2"), (6, "Q2")], ids="of {} turns".format
)
def test_the_question_is_what_the_user_asked_last(num_turns: int, question: str) -> None:
    assert question_of(CHAT, num_turns) == question


@pytest.mark.parametrize(("name", "example"), [("alpaca", WITH_INPUT), ("alpaca", WITHOUT), ("plain", WITHOUT)])
def test_a_question_as_it_is_typed_asks_the_same(name: TemplateName, example: Alpaca) -> None:
    assert question_of(as_question(name, as_text(name, example))) == question_of(example)
