"""Which column of a row plays which part: as the recipe says, or found by the usual names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from strop.data.rows.fields import RowError, is_empty

Format = Literal["alpaca", "messages", "sharegpt", "prompt_completion", "text", "tokens"]
FORMATS: tuple[Format, ...] = ("messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokens")

Part = Literal[
    "messages", "prompt", "completion", "instruction", "input", "output", "system", "history", "tools", "text"
]

QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input", "user", "human")
ANSWERS = ("output", "completion", "response", "answer", "solution", "assistant", "gpt", "bot", "target")
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
    ("user", "assistant"),
)
_CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "dialogue", "dialog")
_DOCUMENT = ("text",)
_ANSWERS_OF_A_TEXT = (*ANSWERS, "summary", "label", "labels", "highlights", "translation", "code")
PREFERENCE = ("chosen", "rejected")
_REFUSED = {
    "segments": "parts of a text that are learned or not: write prompt and completion, or turns with train: false, or "
    "input_ids with labels",
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_instruction", "systeminstruction"),
    "input": ("input", "context"),
    "history": ("history",),
}
_OPTIONAL_OF: dict[Format, tuple[str, ...]] = {
    "messages": ("system",),
    "sharegpt": ("system",),
    "alpaca": ("input", "system", "history"),
    "prompt_completion": ("input", "system", "history"),
    "text": (),
    "tokens": (),
}
REQUIRED: dict[Format, tuple[Part, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "tokens": (),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of a source are read.

    Attributes:
        format: The kind of rows.
        columns: Each part of a row and the column that has it.
        chosen: The recipe names the columns, so the others are not used.
    """

    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    chosen: bool = False

    def describe(self) -> str:
        """The columns whose names are not those of their parts, for people: `instruction: question`."""
        own = {"messages", "conversations"}
        renamed = [f"{part}: {name}" for part, name in self.columns.items() if name != part and name not in own]
        return ", ".join(renamed)


def describe_shapes() -> str:
    """The known shapes and their keys, for messages."""
    return (
        "messages or conversations (a list of turns); instruction, output; prompt, completion; "
        "question, answer and such pairs; text; input_ids. Other names: data.columns, such as "
        "{prompt: MY_QUESTION, completion: MY_ANSWER} or {messages: MY_TURNS}"
    )


def shape_chosen(columns: Mapping[str, str]) -> Shape:
    """The shape of rows whose columns the recipe names; the parts decide it."""
    if "messages" in columns:
        return Shape("messages", columns, True)
    if "text" in columns:
        return Shape("text", columns, True)
    if columns.keys() & {"instruction", "input", "output"}:
        names = {"prompt": "instruction", "completion": "output"}
        return Shape("alpaca", {names.get(part, part): name for part, name in columns.items()}, True)
    return Shape("prompt_completion", columns, True)


def shape_of(row: Mapping[str, Any], format: Format | None = None) -> Shape | None:
    """The shape that a row's keys indicate, or None; empty columns do not count.

    Args:
        row: A row.
        format: Only this kind of rows.

    Raises:
        RowError: The keys can be read in two ways.
    """
    names = _names(row)
    for read in (_tokens, _conversation, _pair, _document):
        if found := read(row, names, format):
            return found
    for name, reason in _REFUSED.items():
        if name in names:
            raise RowError(f"not supported: '{names[name]}' are {reason}")
    return None


def better_answer(row: Mapping[str, Any]) -> str:
    """The data.columns with which the better answer of a preference row is learned."""
    names = _names(row)
    asked = next((names[name] for name in (*QUESTIONS, *_CONVERSATIONS) if name in names), None)
    if asked is None:
        return "{text: chosen}" if isinstance(row.get("chosen"), str) else "{messages: chosen}"
    about = next((names[name] for name in _OPTIONAL["input"] if name in names and names[name] != asked), None)
    if about:
        return f"{{instruction: {asked}, input: {about}, output: chosen}}"
    return f"{{prompt: {asked}, completion: chosen}}"


@lru_cache(maxsize=1024)
def optional_columns(keys: tuple[str, ...], format: Format) -> dict[str, tuple[str, ...]]:
    """The columns among a row's keys that may have its optional parts: part -> names."""
    found = {
        part: tuple(key for key in keys if key.strip().lower() in _OPTIONAL[part]) for part in _OPTIONAL_OF[format]
    }
    return {part: names for part, names in found.items() if names}


def _names(row: Mapping[str, Any]) -> dict[str, str]:
    """Names in small letters and without spaces around them -> the row's own; the exact name comes first."""
    there = [key for key, value in row.items() if value is not None]
    return {key.strip().lower(): key for key in there} | {key: key for key in there}


def _tokens(row: Mapping[str, Any], names: dict[str, str], format: Format | None) -> Shape | None:
    ids = row.get("input_ids")
    wanted = format in (None, "tokens") and isinstance(ids, list) and (ids or format)
    return Shape("tokens") if wanted else None


def _conversation(row: Mapping[str, Any], names: dict[str, str], format: Format | None) -> Shape | None:
    if format not in (None, "messages", "sharegpt"):
        return None
    for name in _CONVERSATIONS:
        if name in names and (format or _is_list(row[names[name]])):
            kind: Format = format or ("sharegpt" if name == "conversations" else "messages")
            return Shape(kind, {"messages": names[name]})
    return None


def _is_list(value: Any) -> bool:
    """Whether a value is a list that is not empty, or looks like one in JSON."""
    return bool(value) and (isinstance(value, list) or (isinstance(value, str) and value.lstrip()[:1] == "["))


def _pair(row: Mapping[str, Any], names: dict[str, str], format: Format | None) -> Shape | None:
    if (
        {"prompt", "completion"} <= names.keys()
        and "instruction" not in names
        and format in (None, "prompt_completion")
    ):
        return Shape("prompt_completion", {"prompt": names["prompt"], "completion": names["completion"]})
    if format not in (None, "alpaca", "prompt_completion"):
        return None
    pairs = [pair for pair in _PAIRS if names.keys() >= set(pair)]
    questions = [name for name in QUESTIONS if name in names]
    if pairs == [("input", "output")] and len(questions) > 1:
        pairs = []  # beside another, the input is what that is about
    if pairs and pairs[0] != _PAIRS[0]:  # instruction, input, output is one pair, though it looks like two
        _refuse_two("question", [q for q, _ in pairs])
        _refuse_two("answer", [a for _, a in pairs])
    if not pairs:
        questions = [name for name in questions if name != "input"] or questions
        answers = [name for name in ANSWERS if name in names]
        if not questions or not answers:
            return None
        _refuse_two("question", questions)
        _refuse_two("answer", answers)
        pairs = [(questions[0], answers[0])]
    question, answer = pairs[0]
    if format == "prompt_completion":
        return Shape(format, {"prompt": names[question], "completion": names[answer]})
    return Shape("alpaca", {"instruction": names[question], "output": names[answer]})


def _refuse_two(what: str, names: list[str]) -> None:
    if len(set(names)) > 1:
        both = " and ".join(map(repr, dict.fromkeys(names)))
        raise RowError(f"two columns for one part: {both} could both be the {what}; say which with data.columns")


def _document(row: Mapping[str, Any], names: dict[str, str], format: Format | None) -> Shape | None:
    if format not in (None, "text") or "text" not in names:
        return None
    other = next((name for name in _ANSWERS_OF_A_TEXT if name in names and not is_empty(row[names[name]])), None)
    if other and format is None:
        raise RowError(
            f"a document or a pair: the row has '{names['text']}' and '{names[other]}'; data.format=text learns the "
            f"document, data.columns={{prompt: {names['text']}, completion: {names[other]}}} the answer"
        )
    return Shape("text", {"text": names["text"]})
