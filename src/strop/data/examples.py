"""What a row means once it has been read, and the fault of a row that cannot be used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row comes from; `line` counts from 1 (in Parquet: the row)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used. The reason reads `kind: details`, so that faults can be counted by kind."""

    origin: Origin
    reason: str

    @property
    def kind(self) -> str:
        """The part of the reason that all faults of this kind share."""
        return self.reason.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function: its name, its arguments by name, and the id that its result refers to (may be empty)."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: The text; an assistant's may be empty beside tool calls.
        reasoning: What an assistant thought before it answered, if the row has it apart from the content.
        tool_calls: Functions that an assistant calls.
        name: Of the function whose result a tool returns; may be empty.
        tool_call_id: Of the call whose result a tool returns; may be empty.
        learned: False for an answer that is only context.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Alpaca:
    """An instruction, what it is about (may be empty) and the answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with a learned answer, except for a question that has yet to be answered.

    Attributes:
        messages: The turns.
        tools: Functions that the assistant may call, each `{"type": "function", "function": {...}}`.
        documents: What the answer may be based on, as `apply_chat_template` takes it.
        template_kwargs: Values that the chat template reads besides these, such as enable_thinking.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and the text that follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document, learned as a whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row that is tokenised already: ids, and for each whether it is learned."""

    input_ids: tuple[int, ...]
    learned: tuple[bool, ...]


Example = Alpaca | Conversation | PromptCompletion | Text | Tokens


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be used.

    Attributes:
        origin: Where it is.
        example: What it means.
        unused: Its keys that are not used, as paths: `category`, `messages[].id`.
        source: Which of the sources it is read from, from 0; two may read parts of one file.
    """

    origin: Origin
    example: Example
    unused: tuple[str, ...] = field(default=())
    source: int = 0


def split_answer(example: Example, num_turns: int = 0) -> tuple[tuple[str, ...], str]:
    """The parts that come before the (last) answer, and the answer; a Text is all answer.

    Two examples have the same prompt exactly when the first parts are equal.

    Args:
        example: A row.
        num_turns: Of a conversation, only its first turns; 0 for all.
    """
    match example:
        case Alpaca():
            return ("user", example.instruction, example.input), example.output
        case PromptCompletion():
            return (example.prompt,), example.completion
        case Text():
            return (), example.text
        case Tokens(ids, learned):
            start = learned.index(True)
            return tuple(map(str, ids[:start])), " ".join(map(str, ids[start:]))
        case Conversation(all_messages, tools, documents, values):
            messages = all_messages[: num_turns or None]
            last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
            answer = "\x1f".join(_parts(messages[last])[1:]) if last < len(messages) else ""
            given = tuple(json.dumps(part, sort_keys=True) for part in (tools, documents, values) if part)
            return given + tuple(part for m in messages[:last] for part in _parts(m)), answer


def _parts(message: Message) -> list[str]:
    calls = [json.dumps([call.name, dict(call.arguments)], sort_keys=True) for call in message.tool_calls]
    return [message.role, message.content, *([message.reasoning] if message.reasoning else []), *calls]
