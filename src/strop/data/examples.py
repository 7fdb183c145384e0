"""What a row means once it has been read, and the fault of a row that cannot be used."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


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
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Alpaca:
    """An instruction, what it is about (may be empty) and the answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, then user and assistant in turn."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt and the text that follows it, joined as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document, learned as a whole."""

    text: str


Example = Alpaca | Conversation | PromptCompletion | Text


def split_answer(example: Example) -> tuple[tuple[str, ...], str]:
    """The parts that come before the (last) answer, and the answer; a Text is all answer.

    Two examples have the same prompt exactly when the first parts are equal.
    """
    match example:
        case Alpaca():
            return ("user", example.instruction, example.input), example.output
        case PromptCompletion():
            return (example.prompt,), example.completion
        case Text():
            return (), example.text
        case Conversation(messages):
            last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=len(messages))
            answer = messages[last].content if last < len(messages) else ""
            return tuple(part for m in messages[:last] for part in (m.role, m.content)), answer
