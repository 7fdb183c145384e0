"""The turns of a conversation, in the spellings that are in use -> messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from strop.data.examples import Message, Role
from strop.data.rows import masks
from strop.data.rows.calls import calls_in_text, read_calls
from strop.data.rows.fields import RowError, first_key, get, is_empty, text, unknown
from strop.data.rows.parts import Content, read_content

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "prompter": "user",  # OpenAssistant's
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",  # Cohere's
    "chatgpt": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_output": "tool",
    "function_response": "tool",
    "environment": "tool",
    "ipython": "tool",
}
"""Who speaks, in small letters, and what that is called here."""

_CALLS = ("function_call", "tool_call")
_WHO, _WHAT = ("role", "from"), ("content", "value", "parts")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_HIDDEN = ("analysis", "commentary")
"""Channels of Harmony that are not what an answer says."""

_REFUSED = {
    **dict.fromkeys(
        ("image", "images", "image_url", "audio", "audios", "video", "videos"), "strop trains on text only"
    ),
    "tools": "declare them beside the turns, in the row's own 'tools'",  # Phi-4-mini's place for them
    "refusal": "write what should be learned into 'content'",
}
_KNOWN = frozenset((*_REASONING, *masks.TURN_KEYS, "tool_calls", "function_call"))
_OF_A_TOOL = frozenset(("name", "tool_call_id"))
_FAULT_IF_EMPTY: dict[Role, str | None] = {
    "assistant": "empty answer",
    "user": "empty question",
    "system": None,
    "tool": None,
}


def read_turns(turns: Any, key: str, unused: set[str]) -> list[Message]:
    """Every turn of a conversation as a message; one with results of calls among its parts makes several.

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
        if not isinstance(turn, dict):
            raise RowError(f"not an object: turn {number} of '{key}'")
        messages += read_turn(turn, f" in turn {number}", f"{key}[]", unused)
    return messages


def read_turn(turn: dict[str, Any], where: str, path: str, unused: set[str]) -> list[Message]:
    """A turn as messages: the results of calls that it has among its parts, then what it says itself.

    Args:
        turn: The turn.
        where: It is, for messages.
        path: To it, for unused keys.
        unused: Told of the keys that are not used.

    Raises:
        RowError: As `read_turns`.
    """
    _refuse(turn, where)
    who = first_key(turn, _WHO) or (_WHO[0] if "content" in turn else _WHO[-1])
    what = first_key(turn, _WHAT) or next((name for name in _WHAT if turn.get(name) is not None), None)
    role, said = _role(turn, who, where)
    learned = masks.of_turn(turn, where)
    if learned and role != "assistant":
        raise RowError(
            f"not an answer: the turn from {role}{where} asks to be learned; "
            "only answers can be, or everything with data.train_on=all"
        )
    found = read_content(turn[what] if what else None, where, f"{path}.{what}", unused)
    calls = read_calls(turn, where, path, unused)
    if said in _CALLS and found.text:
        calls += calls_in_text(found.text, where, f"{path}.{what}", unused)
        found = replace(found, text="")
    of_tool = role == "tool" and not found.results
    if own := turn.keys() - (_KNOWN | _OF_A_TOOL if of_tool else _KNOWN) - {who, what}:
        _refuse_other_spelling(turn, own, where)
        unused |= unknown({name: turn[name] for name in own}, (), f"{path}.")
    message = Message(
        role,
        found.text,
        _reasoning(turn, found, where),
        (*calls, *found.calls),
        _optional(turn, "name", where) if of_tool else "",
        _optional(turn, "tool_call_id", where) if of_tool else "",
        role == "assistant" and learned is not False,
    )
    if found.results and role not in ("user", "tool"):
        raise RowError(f"not a result: the turn from {role}{where} has the result of a call")
    if found.results and not found.text:
        return list(found.results)
    _require_content(message, turn, what or (_WHAT[0] if who == "role" else _WHAT[1]), where)
    return [*found.results, message]


def _refuse_other_spelling(turn: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Refuse keys that are known ones but for large letters or spaces: what they say would be lost."""
    for key in keys:
        known = key.strip().lower()
        if known != key and (known in _KNOWN or known in _REFUSED) and not is_empty(turn[key]):
            raise RowError(f"another spelling: '{key}'{where}: write '{known}'")


def _refuse(turn: Mapping[str, Any], where: str) -> None:
    for name in turn.keys() & _REFUSED.keys():
        if not is_empty(turn[name]):
            raise RowError(f"not supported: '{name}'{where}: {_REFUSED[name]}")
    if turn.get("channel") in _HIDDEN:
        raise RowError(
            f"not supported: 'channel' is {turn['channel']!r}{where}: write reasoning into 'reasoning_content' and "
            "calls into 'tool_calls' of the answer that they belong to"
        )


def _role(turn: Mapping[str, Any], who: str, where: str) -> tuple[Role, str]:
    """Who speaks, and how the row writes it in small letters."""
    said = text(turn, who, where=where).strip().lower()
    if said not in ROLES:
        raise RowError(f"unknown role: '{who}' is {turn[who]!r}{where}; known roles are {', '.join(ROLES)}")
    return ROLES[said], said


def _optional(turn: Mapping[str, Any], name: str, where: str) -> str:
    return "" if is_empty(turn.get(name)) else text(turn, name, where=where)


def _require_content(message: Message, turn: Mapping[str, Any], what: str, where: str) -> None:
    if message.role != "assistant" and (message.tool_calls or message.reasoning):
        raise RowError(f"not an answer: the turn from {message.role}{where} has tool calls or reasoning")
    if message.content.strip() or message.tool_calls:
        return
    get(turn, what, where)  # missing or null
    if fault := _FAULT_IF_EMPTY[message.role]:
        raise RowError(f"{fault}: '{what}'{where}")


def _reasoning(turn: Mapping[str, Any], found: Content, where: str) -> str:
    """What the turn thinks, from its own key or among its parts."""
    said = {found.reasoning, *(_optional(turn, key, where) for key in _REASONING if key in turn)}
    said = {one for one in said if one.strip()}
    if len(said) > 1:
        raise RowError(f"contradiction: two different texts of reasoning{where}")
    return said.pop() if said else ""


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
        if flag and not message.learned:
            raise RowError(
                f"contradiction: the row's mask asks for turn {number} to be learned, but the turn is marked as "
                "context, or is part of the prompt"
            )
    return [replace(m, learned=flag) for m, flag in zip(messages, flags, strict=True)]
