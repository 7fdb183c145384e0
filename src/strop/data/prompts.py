"""Which template renders which rows, and the templates that are not the model's own."""

from collections.abc import Collection
from typing import Any, Literal

from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Text, Tokens
from strop.data.rows.columns import Format
from strop.errors import DataError, RecipeError

TemplateName = Literal["chat", "alpaca", "plain"]
Segment = tuple[str, bool]  # text, and whether it is an answer that is learned

# Taori et al. 2023, Stanford Alpaca; "### Input" only where there is one.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
INPUT = "\n\n### Input:\n"
"""Between an instruction and its input, in the prompt and in a question to a model trained with the alpaca template."""

_FORMATS: dict[TemplateName, tuple[Format, ...]] = {
    "chat": ("alpaca", "messages", "sharegpt", "prompt_completion"),
    "alpaca": ("alpaca",),
    "plain": ("prompt_completion", "text", "tokens"),
}
_OF_NO_TEMPLATE = ("text", "tokens")
"""Rows that no template changes: beside others, they are learned as they are."""


def resolve_template(name: str, formats: Collection[Format], has_chat_template: bool) -> TemplateName:
    """The template that `auto` stands for, or the named one if it can render rows of these formats.

    Raises:
        RecipeError: The template cannot render rows of one format, or there is no chat template.
    """
    rendered = sorted({format for format in formats if format not in _OF_NO_TEMPLATE}) or list(formats)
    if name == "auto":
        name = _auto(rendered, has_chat_template)
    for known, able in _FORMATS.items():
        if known != name:
            continue
        if unable := [format for format in rendered if format not in able]:
            raise RecipeError(f"data.template={name} renders {', '.join(able)} rows, but these are {unable[0]}")
        if known == "chat" and not has_chat_template:
            raise RecipeError(
                "data.template=chat: the rows need a chat template, but this tokenizer has none; use the "
                "instruct version of the model, set data.chat_template, or use rows with prompt and completion"
            )
        return known
    raise RecipeError(f"data.template={name!r} is unknown; choose one of auto, {', '.join(_FORMATS)}")


def _auto(formats: list[Format], has_chat_template: bool) -> TemplateName:
    if all(format in _OF_NO_TEMPLATE for format in formats):
        return "plain"
    if not has_chat_template and formats == ["alpaca"]:
        return "alpaca"
    return "plain" if not has_chat_template and formats == ["prompt_completion"] else "chat"


def as_turns(example: Example) -> tuple[Message, ...]:
    """An example as the messages of a chat; an alpaca row's input follows its instruction after a blank line.

    Raises:
        DataError: A document has no turns.
    """
    match example:
        case Conversation(messages):
            return messages
        case Alpaca():
            question = example.instruction + (f"\n\n{example.input}" if example.input else "")
            answer = example.output
        case PromptCompletion():
            question, answer = example.prompt, example.completion
        case Text() | Tokens():
            raise DataError("this row has no turns; use data.template=plain")
    return Message("user", question), Message("assistant", answer)


def as_json(message: Message) -> dict[str, Any]:
    """A message as chat templates take it."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        # Qwen, DeepSeek and others read the first name, gpt-oss and Granite the second.
        turn |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if value:
            turn[key] = value
    return turn


def as_segments(name: TemplateName, example: Example) -> list[Segment]:
    """An example under the alpaca or plain template: prompt, then answer; a Text is all answer. No eos yet.

    Raises:
        DataError: The template does not render examples of this type.
    """
    match name, example:
        case "alpaca", Alpaca(output=output):
            # By way of the question, so that an instruction with a heading of its own is read here as it is when asked.
            instruction, _, given = as_text(name, example).partition(INPUT)
            prompt = ALPACA_WITH_INPUT.format(instruction, given) if given else ALPACA.format(instruction)
            return [(prompt, False), (output, True)]
        case "plain", PromptCompletion(prompt, completion):
            return [(prompt, False), (completion, True)]
        case _, Text(text):
            return [(text, True)]
        case _, Conversation():
            raise DataError(
                f"the {name} template has no place for the row's turns, system message or tools; use data.template=chat"
            )
    raise DataError(f"the {name} template cannot render a row of type {type(example).__name__}")


def as_question(name: TemplateName, question: str) -> Example:
    """A single question as one of the template's rows; the inverse of `as_text`."""
    if name == "alpaca":
        instruction, _, given = question.partition(INPUT)
        return Alpaca(instruction, given, "")
    if name == "plain":
        return PromptCompletion(question, "")
    return Conversation((Message("user", question),))


def as_text(name: TemplateName, example: Example) -> str:
    """What a user types to ask what a row asks; for alpaca, an input follows its heading.

    A blank line would not do: instructions of two paragraphs have one too.

    Raises:
        DataError: A document has no turns.
    """
    if name == "alpaca" and isinstance(example, Alpaca) and example.input:
        return f"{example.instruction}{INPUT}{example.input}"
    return question_of(example)


def question_of(example: Example, num_turns: int = 0) -> str:
    """What the user asked before the last answer, in the row's own words; empty if nothing.

    Args:
        example: A row.
        num_turns: Of a conversation, only its first turns; 0 for all.

    Raises:
        DataError: A document has no turns.
    """
    turns = as_turns(example)[: num_turns or None]
    return next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
