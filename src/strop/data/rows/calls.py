"""Tools that a row declares and calls of them, in the spellings that are in use -> OpenAI's.

Arguments written as JSON text are parsed: chat templates write them as JSON themselves, and text would come out quoted
twice.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from strop.data.examples import ToolCall
from strop.data.rows.fields import RowError, is_empty, objects, parsed, text


def read_tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The functions that a row declares under `tools` or, as OpenAI once had it, `functions`.

    Raises:
        RowError: They are no list of functions with names.
    """
    found: list[dict[str, Any]] = []
    for key in ("tools", "functions"):
        if not is_empty(row.get(key)):
            found += objects(row[key], f"'{key}'")
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in found]
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise RowError(f"bad tool: tool {number} has no function with a name")
    return tuple(tools)


def read_calls(turn: Mapping[str, Any], where: str, unused: set[str]) -> tuple[ToolCall, ...]:
    """The calls of a turn: `tool_calls`, or the older `function_call`.

    Raises:
        RowError: A call lacks its name, or its arguments are no JSON object.
    """
    calls = [] if is_empty(turn.get("tool_calls")) else objects(turn["tool_calls"], f"'tool_calls'{where}")
    if not is_empty(turn.get("function_call")):
        calls.append(parsed(turn["function_call"], f"'function_call'{where}"))
    return tuple(_call(call, where, unused) for call in calls)


def calls_in_text(content: str, where: str) -> tuple[ToolCall, ...]:
    """The calls of a ShareGPT turn from `function_call`, whose text is a call or a list of calls in JSON.

    Raises:
        RowError: It is something else.
    """
    found = parsed(content, f"the function call{where}")
    calls = found if isinstance(found, list) else [found]
    return tuple(_call(call, where, set()) for call in calls)


def _call(call: Any, where: str, unused: set[str]) -> ToolCall:
    if not isinstance(call, dict):
        raise RowError(f"bad tool call: a call{where} is not an object with name and arguments")
    if call.get("type") not in (None, "function"):
        raise RowError(f"bad tool call: type {call['type']!r}{where}; only functions can be called")
    inner = call.get("function") if "function" in call else call
    if not isinstance(inner, dict):
        raise RowError(f"bad tool call: 'function'{where} is not an object")
    key = "arguments" if "arguments" in inner or "parameters" not in inner else "parameters"
    arguments = parsed(inner.get(key) or {}, f"the arguments of a call{where}")
    if not isinstance(arguments, dict):
        raise RowError(f"bad tool call: the arguments{where} are not an object")
    identity = call.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RowError(f"not text: the id of a call{where}")
    unused |= set(_unknown(call, inner, key))
    return ToolCall(text(inner, "name", "empty name of a tool", where), arguments, identity or "")


def _unknown(call: dict[str, Any], inner: dict[str, Any], arguments: str) -> Iterator[str]:
    """Keys of a call that are not used."""
    known = {"name", arguments}
    outer = {"id", "type", "function"} if inner is not call else {"id", "type"} | known
    yield from (f"tool_calls[].{key}" for key, value in call.items() if key not in outer and not is_empty(value))
    if inner is not call:
        yield from (
            f"tool_calls[].function.{key}" for key, value in inner.items() if key not in known and not is_empty(value)
        )
