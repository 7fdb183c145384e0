"""The turns of a conversation, in OpenAI's, ShareGPT's and Gemini's spelling -> messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from strop.data.examples import Message, Role
from strop.data.rows import masks
from strop.data.rows.calls import calls_in_text, read_calls
from strop.data.rows.fields import RowError, get, is_empty, text

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""Who speaks, in small letters, and what that is called here."""

_CALLS = ("function_call", "tool_call")
_WHO, _WHAT = ("role", "from"), ("content", "value", "parts")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_REFUSED = {
    **dict.fromkeys(
        ("image", "images", "image_url", "audio", "audios", "video", "videos"), "strop trains on text only"
    ),
    "refusal": "write what should be learned into 'content'",
}
_KNOWN = frozenset(
    (
        *_WHO,
        *_WHAT,
        *_REASONING,
        *_REFUSED,
        *masks.MASK_KEYS,
        *masks.REFUSED_IN_TURNS,
        "tool_calls",
        "function_call",
        "tool_call_id",
        "name",
    )
)
_FAULT_IF_EMPTY: dict[Role, str | None] = {
    "assistant": "empty answer",
    "user": "empty question",
    "system": None,
    "tool": None,
}


def read_turns(turns: Any, key: str, unused: set[str]) -> list[Message]:
    """Every turn of a conversation as a message; Gemini's may make several.

    Args:
        turns: The value of the row's key.
        key: Its name, for messages.
        unused: Told of the keys that are not used.

    Raises:
        RowError: A turn that cannot be read, or asks for what strop cannot do.
    """
    if not isinstance(turns, list) or not turns:
        raise RowError(f"no turns: '{key}' must be a list of objects with 'role' and 'content'")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        where = f" in turn {number}"
        if not isinstance(turn, dict):
            raise RowError(f"not an object: turn {number}")
        messages += _read_turn(turn, where, key, unused)
    return messages


def _read_turn(turn: dict[str, Any], where: str, key: str, unused: set[str]) -> list[Message]:
    for name, reason in _REFUSED.items():
        if not is_empty(turn.get(name)):
            raise RowError(f"not supported: '{name}'{where}: {reason}")
    who = next((name for name in _WHO if turn.get(name) is not None), _WHO[0] if "content" in turn else _WHO[-1])
    said = text(turn, who, where=where)
    role = ROLES.get(said.strip().lower())
    if role is None:
        raise RowError(f"unknown role: '{who}' is {said!r}{where}; known roles are {', '.join(ROLES)}")
    learned = masks.of_turn(turn, where)
    if learned and role != "assistant":
        raise RowError(
            f"not an answer: the turn from {role}{where} asks to be learned; "
            "only answers can be, or everything with data.train_on=all"
        )
    what = next((name for name in _WHAT if turn.get(name) is not None), None)
    found = read_content(turn.get(what) if what else None, where)
    own: set[str] = set()
    calls = read_calls(turn, where, own)
    if said.strip().lower() in _CALLS and found.text:
        calls, found = (*calls, *calls_in_text(found.text, where)), replace(found, text="")
    own |= {name for name in turn.keys() - _KNOWN if not is_empty(turn[name])}
    own |= {name for name in (*_WHO, *_WHAT) if name not in (who, what) and not is_empty(turn.get(name))}
    message = Message(
        role,
        found.text,
        _reasoning(turn, where) or found.reasoning,
        (*calls, *found.calls),
        "" if role != "tool" else turn.get("name") or "",
        turn.get("tool_call_id") or "",
        role == "assistant" and learned is not False,
    )
    if turn.get("name") and role != "tool":
        own.add("name")
    unused |= {f"{key}[].{name}" for name in own}
    if found.results:
        return list(found.results)
    _require_content(message, turn, what or (_WHAT[0] if who == "role" else _WHAT[1]), where)
    return [message]


def _require_content(message: Message, turn: dict[str, Any], what: str, where: str) -> None:
    if message.role != "assistant" and (message.tool_calls or message.reasoning):
        raise RowError(f"not an answer: the turn from {message.role}{where} has tool calls or reasoning")
    for name in ("name", "tool_call_id"):
        if not isinstance(turn.get(name), str | None):
            raise RowError(f"not text: '{name}'{where}")
    if message.content.strip() or message.tool_calls:
        return
    get(turn, what, where)  # missing or null
    if fault := _FAULT_IF_EMPTY[message.role]:
        raise RowError(f"{fault}: '{what}'{where}")


def _reasoning(turn: Mapping[str, Any], where: str) -> str:
    said = {turn[key] for key in _REASONING if isinstance(turn.get(key), str) and turn[key].strip()}
    for key in _REASONING:
        if not is_empty(turn.get(key)) and not isinstance(turn[key], str):
            raise RowError(f"not text: '{key}'{where}")
    if len(said) > 1:
        raise RowError(f"contradiction: two different texts of reasoning{where}")
    return said.pop() if said else ""


@dataclass(frozen=True, slots=True)
class _Content:
    text: str = ""
    reasoning: str = ""
    calls: tuple[Any, ...] = ()
    results: tuple[Message, ...] = ()


def read_content(value: Any, where: str) -> _Content:
    """A text, or parts of text, of reasoning, and of Gemini's function calls and their results.

    Raises:
        RowError: A part is something else, such as an image.
    """
    if value is None:
        return _Content()
    if isinstance(value, str):
        return _Content(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(part, dict | str) for part in value):
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise RowError(f"not text: the content{where} is of type {type(value).__name__}, but must be text{hint}")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    results: list[Message] = []
    for part in value:
        kind, content = _part(part, where)
        match kind:
            case "text":
                texts.append(content)
            case "reasoning":
                thoughts.append(content)
            case "call":
                calls += read_calls({"tool_calls": [content]}, where, set())
            case "result":
                results.append(content)
    return _Content("".join(texts), "".join(thoughts), tuple(calls), tuple(results))


def _part(part: dict[str, Any] | str, where: str) -> tuple[Literal["text", "reasoning", "call", "result"], Any]:
    if isinstance(part, str):
        return "text", part
    there = {key: value for key, value in part.items() if value is not None}
    if isinstance(call := there.get("functionCall", there.get("function_call")), dict):
        return "call", {"name": call.get("name"), "arguments": call.get("args") or {}}
    if isinstance(result := there.get("functionResponse", there.get("function_response")), dict):
        content = json.dumps(result.get("response"), ensure_ascii=False)
        return "result", Message("tool", content, name=str(result.get("name") or ""), learned=False)
    for kind, keys in (("reasoning", ("thinking", "reasoning")), ("text", ("text",))):
        for key in keys:
            if isinstance(there.get(key), str) and there.get("type", key) in (key, "output_text", "input_text"):
                if kind == "text" and there.get("thought") is True:
                    return "reasoning", there[key]
                return ("reasoning" if kind == "reasoning" else "text"), there[key]
    raise RowError(
        f"not text: a part{where} is {there.get('type') or ', '.join(there) or 'empty'}; strop trains on text"
    )


def with_masks(messages: Sequence[Message], flags: Sequence[bool] | None) -> list[Message]:
    """The messages with the learning flags of the row's own list.

    Raises:
        RowError: It asks for a turn that is no answer to be learned.
    """
    if flags is None:
        return list(messages)
    for number, (message, flag) in enumerate(zip(messages, flags, strict=True), 1):
        if flag and message.role != "assistant":
            raise RowError(
                f"not an answer: the row's mask asks for turn {number} from {message.role} to be learned; "
                "only answers can be, or everything with data.train_on=all"
            )
    return [replace(m, learned=m.learned and flag) for m, flag in zip(messages, flags, strict=True)]
