"""The five shapes of a row: told apart by their keys, checked field by field, turned into examples."""

from collections.abc import Callable
from typing import Any, Literal

from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Role, Text

Format = Literal["alpaca", "messages", "sharegpt", "prompt_completion", "text"]

# In order of precedence: tatsu-lab/alpaca also has a `text` column, chat data sets often have a `prompt`.
_KEYS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
FORMATS: tuple[Format, ...] = tuple(_KEYS)
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {**_ROLES, "human": "user", "gpt": "assistant"}


class RowError(ValueError):
    """A row that does not fit its shape; the message is the fault's reason."""


def shape_of(row: dict[str, Any]) -> Format | None:
    """The shape that a row's keys indicate, or None."""
    return next((shape for shape, keys in _KEYS.items() if any(key in row for key in keys)), None)


def describe_shapes() -> str:
    """The known shapes and their keys, for messages."""
    return "; ".join(f"{shape} ({', '.join(keys)})" for shape, keys in _KEYS.items())


def to_example(row: dict[str, Any], shape: Format) -> Example:
    """A row as an example of a given shape; keys that the shape does not know are ignored.

    Raises:
        RowError: A field is missing, null, not text or empty where it must not be; turns out of order.
    """
    if not any(key in row for key in _KEYS[shape]) and (other := shape_of(row)):
        raise RowError(f"mixed shapes: this row has the keys of {other}, but the data is read as {shape}")
    return _CONVERTERS[shape](row)


def _alpaca(row: dict[str, Any]) -> Example:
    given = row.get("input")
    return Alpaca(
        _text(row, "instruction", "empty instruction"),
        "" if given is None else _text(row, "input"),
        _text(row, "output", "empty answer"),
    )


def _prompt_completion(row: dict[str, Any]) -> Example:
    return PromptCompletion(_text(row, "prompt", "empty prompt"), _text(row, "completion", "empty answer"))


def _document(row: dict[str, Any]) -> Example:
    return Text(_text(row, "text", "empty text"))


def _messages(row: dict[str, Any]) -> Example:
    return _conversation(row, "messages", "role", "content", _ROLES)


def _sharegpt(row: dict[str, Any]) -> Example:
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        return _conversation(row, "conversations", "role", "content", _ROLES)
    return _conversation(row, "conversations", "from", "value", _SHAREGPT_ROLES)


def _conversation(row: dict[str, Any], key: str, who: str, what: str, roles: dict[str, Role]) -> Example:
    turns = _field(row, key)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"no turns: '{key}' must be a list of objects with '{who}' and '{what}'")
    messages = tuple(_turn(turn, number, who, what, roles) for number, turn in enumerate(turns, 1))
    _check_order(messages)
    return Conversation(messages)


def _turn(turn: Any, number: int, who: str, what: str, roles: dict[str, Role]) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"not an object: turn {number}")
    speaker = _text(turn, who, where=f" in turn {number}")
    if speaker not in roles:
        raise RowError(f"unknown role: '{who}' is {speaker!r} in turn {number}; known roles are {', '.join(roles)}")
    role = roles[speaker]
    if turn.get("weight") == 0:
        raise RowError(f"weight 0: turn {number} asks not to be learned, which strop cannot do for a single turn")
    empty = {"assistant": "empty answer", "user": "empty question", "system": None}[role]
    return Message(role, _text(turn, what, empty, where=f" in turn {number}"))


def _check_order(messages: tuple[Message, ...]) -> None:
    start = 1 if messages[0].role == "system" else 0
    expected: Role = "user"
    for number, message in enumerate(messages[start:], start + 1):
        if message.role == "system":
            raise RowError(f"turns out of order: turn {number} is from system, which may only come first")
        if message.role != expected:
            turn = "the first turn" if number == start + 1 else f"turn {number}"
            raise RowError(f"turns out of order: {turn} is from {message.role}, but must be from {expected}")
        expected = "assistant" if expected == "user" else "user"
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no answer: no turn is from assistant")


def _field(row: dict[str, Any], key: str, where: str = "") -> Any:
    if key not in row:
        raise RowError(f"missing field: '{key}'{where} (the keys are {', '.join(map(repr, row)) or 'none'})")
    if row[key] is None:
        raise RowError(f"null: '{key}'{where}")
    return row[key]


def _text(row: dict[str, Any], key: str, if_empty: str | None = None, where: str = "") -> str:
    """A field that must be text.

    Numbers are not turned into text: 0.10 would become 0.1, which is not what the file says.
    """
    value = _field(row, key, where)
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise RowError(f"not text: '{key}'{where} is of type {type(value).__name__}, but must be text{hint}")
    if if_empty and not value.strip():
        raise RowError(f"{if_empty}: '{key}'{where}")
    return value


_CONVERTERS: dict[Format, Callable[[dict[str, Any]], Example]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "text": _document,
}
