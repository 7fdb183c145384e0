"""The content of a turn -> its text, reasoning, tool calls and their results.

A content is a text or a list of parts, as OpenAI, Anthropic, Gemini and Bedrock write them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from strop.data.examples import Message, ToolCall
from strop.data.rows import masks
from strop.data.rows.calls import read_call
from strop.data.rows.fields import RowError, first_key, is_empty, unknown

_TEXT_TYPES = ("text", "input_text", "output_text")
_REASONING = ("thinking", "reasoning")
_CALLS = ("tool_use", "toolUse", "functionCall", "function_call")
_RESULTS = ("tool_result", "toolResult", "functionResponse", "function_response")
_CALL_IDS = ("tool_use_id", "toolUseId", "id")
_MEDIA = {
    *("image", "image_url", "images", "audio", "video", "document", "file", "inlineData", "inline_data"),
    *("fileData", "file_data", "executableCode", "codeExecutionResult"),
}
_ORDER = ("result", "reasoning", "text", "call")
"""Of the pieces of a turn, as chat templates write them."""

_Piece = tuple[Literal["text", "reasoning", "call", "result"], Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What a turn says; `results` are turns of their own, which come before the text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Message, ...] = ()


def read_content(value: Any, where: str, path: str, unused: set[str]) -> Content:
    """A text, a part or a list of parts.

    Args:
        value: Of the turn's content.
        where: It is, for messages.
        path: To the content, for unused keys.
        unused: Told of the keys that are not used.

    Raises:
        RowError: A part is something else, such as an image, or chat templates would write the parts in another order.
    """
    if is_empty(value) or isinstance(value, str):
        return Content(value or "")
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list) or not all(isinstance(part, dict | str) for part in parts):
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise RowError(f"not text: the content{where} is of type {type(value).__name__}, but must be text{hint}")
    pieces = [piece for part in parts for piece in _pieces(part, where, f"{path}[]", unused) if piece[1] != ""]
    places = [_ORDER.index(kind) for kind, _ in pieces]
    if places != sorted(places):
        raise RowError(
            f"order of the parts: chat templates write {', '.join(_ORDER)}, but the content{where} has "
            f"{', '.join(kind for kind, _ in pieces)}; make several turns of it"
        )
    found = {kind: [content for one, content in pieces if one == kind] for kind in _ORDER}
    return Content("".join(found["text"]), "".join(found["reasoning"]), tuple(found["call"]), tuple(found["result"]))


def _pieces(part: dict[str, Any] | str, where: str, path: str, unused: set[str]) -> list[_Piece]:
    """Everything that a part says, in order."""
    if isinstance(part, str):
        return [("text", part)]
    kind = part.get("type") or None
    if kind in ("tool_use", "tool_result"):
        part = {kind: {key: value for key, value in part.items() if key != "type"}}
    elif kind not in (None, *_TEXT_TYPES, *_REASONING):
        raise RowError(f"not text: a part{where} is {kind}; strop trains on text")
    own: set[str] = set()
    pieces = [piece for key in part for piece in _piece(part, key, where, path, own)]
    if media := sorted(own & {f"{path}.{name}" for name in _MEDIA}):
        raise RowError(f"not text: a part{where} has {media[0].rpartition('.')[2]}; strop trains on text")
    if not pieces:
        there = ", ".join(key for key, value in part.items() if not is_empty(value))
        raise RowError(f"not text: a part{where} is {there or 'empty'}; strop trains on text")
    unused |= own
    return pieces


def _piece(part: dict[str, Any], key: str, where: str, path: str, unused: set[str]) -> Iterator[_Piece]:
    """What one key of a part says."""
    value = part[key]
    if key == "text" and (value == "" or not is_empty(value)):
        is_thought = part.get("thought") is True or part.get("type") in _REASONING
        yield "reasoning" if is_thought else "text", _text(value, key, where)
    elif is_empty(value) or key in ("type", "thought"):
        return
    elif key in _REASONING:
        yield "reasoning", _text(value, key, where)
    elif key == "reasoningContent":
        yield "reasoning", _bedrock_reasoning(value, where, f"{path}.{key}", unused)
    elif key in _CALLS:
        flat = path if key == "tool_use" else f"{path}.{key}"
        yield "call", read_call(value, where, flat, unused)
    elif key in _RESULTS:
        flat = path if key == "tool_result" else f"{path}.{key}"
        yield "result", _result(value, where, flat, unused)
    elif key in masks.OF_A_TURN:
        if not masks.of_turn({key: value}, where):
            raise RowError(f"unclear mask: '{key}' of a part{where}: mask whole turns, or make several turns of it")
    else:
        unused.add(f"{path}.{key}")


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"not text: '{key}' of a part{where} is of type {type(value).__name__}")
    return value


def _bedrock_reasoning(value: Any, where: str, path: str, unused: set[str]) -> str:
    said = value.get("reasoningText") if isinstance(value, dict) else None
    if not isinstance(said, dict):
        raise RowError(f"not text: the reasoning{where} has no text")
    unused |= unknown(value, {"reasoningText"}, f"{path}.") | unknown(said, {"text"}, f"{path}.reasoningText.")
    return _text(said.get("text"), "reasoningText", where)


def _result(value: Any, where: str, path: str, unused: set[str]) -> Message:
    """The result of a call; one that is no text is written as JSON."""
    if not isinstance(value, dict):
        raise RowError(f"not an object: the result of a call{where}")
    key, id_key = first_key(value, ("content", "response")), first_key(value, _CALL_IDS)
    name, identity = value.get("name") or "", value[id_key] if id_key else ""
    if not isinstance(name, str) or not isinstance(identity, str):
        raise RowError(f"not text: the name or id of a result{where}")
    unused |= unknown(value, {"name", key, id_key}, f"{path}.")
    content = value[key] if key else ""
    if isinstance(content, list):
        content = "".join(_result_part(part, where, f"{path}.{key}[]", unused) for part in content)
    elif not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False)
    return Message("tool", content, name=name, tool_call_id=identity, learned=False)


def _result_part(part: Any, where: str, path: str, unused: set[str]) -> str:
    if isinstance(part, dict) and not is_empty(part.get("json")):  # Bedrock's
        unused |= unknown(part, {"json"}, f"{path}.")
        return json.dumps(part["json"], ensure_ascii=False)
    if not isinstance(part, dict | str):
        raise RowError(f"not text: a part of the result{where}")
    found = _pieces(part, where, path, unused)
    if any(kind != "text" for kind, _ in found):
        raise RowError(f"not text: a part of the result{where}")
    return "".join(content for _, content in found)
