"""Tools that a row declares and calls of them, in the spellings that are in use -> OpenAI's.

Arguments written as JSON text are parsed: chat templates write them as JSON themselves, and text would come out quoted
twice.
"""

from collections.abc import Mapping
from typing import Any

from strop.data.examples import ToolCall
from strop.data.rows.fields import RowError, first_key, is_empty, objects, parsed, text, unknown

TOOL_KEYS = ("tools", "functions", "toolConfig")
_DECLARATIONS = ("functionDeclarations", "function_declarations")  # Gemini's
_SCHEMAS = ("input_schema", "inputSchema")  # Anthropic's and Bedrock's
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_IDS = ("id", "toolUseId")


def read_tools(row: Mapping[str, Any], unused: set[str]) -> tuple[dict[str, Any], ...]:
    """The functions that a row declares under `tools`, OpenAI's older `functions`, or Bedrock's `toolConfig`.

    Each is passed on whole; a schema of its arguments that has another name becomes `parameters`.

    Raises:
        RowError: They are no list of functions with names.
    """
    found: list[dict[str, Any]] = []
    for key in ("tools", "functions"):
        found += objects(row.get(key), f"'{key}'")
    config = row.get("toolConfig")
    if isinstance(config, dict):
        found += objects(config.get("tools"), "'toolConfig.tools'")
        unused |= unknown(config, {"tools"}, "toolConfig.")
    elif not is_empty(config):
        raise RowError("bad tool: 'toolConfig' is not an object with tools")
    tools = [function for tool in found for function in _functions(tool)]
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise RowError(f"bad tool: tool {number} has no function with a name")
    return tuple(tools)


def _functions(tool: dict[str, Any]) -> list[dict[str, Any]]:
    """A declaration as OpenAI writes it; Gemini's holds several."""
    if key := first_key(tool, _DECLARATIONS):
        if others := unknown(tool, {key}, ""):
            raise RowError(f"bad tool: {', '.join(map(repr, sorted(others)))}: only functions can be declared")
        return [_function(one) for one in objects(tool[key], f"'{key}'")]
    if not is_empty(tool.get("function")):
        return [tool]
    return [_function(tool["toolSpec"] if isinstance(tool.get("toolSpec"), dict) else tool)]


def _function(declared: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in declared.items() if (key, value) != ("type", "function")}
    if key := first_key(own, _SCHEMAS):
        schema = own.pop(key)
        own["parameters"] = schema["json"] if isinstance(schema, dict) and schema.keys() == {"json"} else schema
    return {"type": "function", "function": own}


def read_calls(turn: Mapping[str, Any], where: str, path: str, unused: set[str]) -> tuple[ToolCall, ...]:
    """The calls of a turn: `tool_calls`, or the older `function_call`.

    Args:
        turn: The turn.
        where: It is, for messages.
        path: To the turn, for unused keys.
        unused: Told of the keys that are not used.

    Raises:
        RowError: A call lacks its name, or its arguments are no JSON object.
    """
    calls = objects(turn.get("tool_calls"), f"'tool_calls'{where}")
    found = [read_call(call, where, f"{path}.tool_calls[]", unused) for call in calls]
    if not is_empty(turn.get("function_call")):
        call = parsed(turn["function_call"], f"'function_call'{where}")
        found.append(read_call(call, where, f"{path}.function_call", unused))
    return tuple(found)


def calls_in_text(content: str, where: str, path: str, unused: set[str]) -> tuple[ToolCall, ...]:
    """The calls of a ShareGPT turn from `function_call`, whose text is a call or a list of calls in JSON.

    Raises:
        RowError: It is something else.
    """
    found = parsed(content, f"the function call{where}")
    if isinstance(found, list):
        return tuple(read_call(call, where, f"{path}[]", unused) for call in found)
    return (read_call(found, where, path, unused),)


def read_call(call: Any, where: str, path: str, unused: set[str]) -> ToolCall:
    """A call as OpenAI, Anthropic (`input`), Gemini (`args`) or Bedrock (`toolUseId`) writes it; see `read_calls`."""
    if not isinstance(call, dict):
        raise RowError(f"bad tool call: a call{where} is not an object with name and arguments")
    if not is_empty(call.get("type")) and call["type"] != "function":
        raise RowError(f"bad tool call: type {call['type']!r}{where}; only functions can be called")
    is_nested = not is_empty(call.get("function"))
    inner = call["function"] if is_nested else call
    if not isinstance(inner, dict):
        raise RowError(f"bad tool call: 'function'{where} is not an object")
    key, id_key = first_key(inner, _ARGUMENTS), first_key(call, _IDS)
    arguments = parsed(inner[key], f"the arguments of a call{where}") if key else None
    if is_empty(arguments):
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"bad tool call: the arguments{where} are not an object")
    if id_key and not isinstance(call[id_key], str):
        raise RowError(f"not text: the id of a call{where}")
    unused |= unknown(call, {"type", "function", id_key} | (set() if is_nested else {"name", key}), f"{path}.")
    if is_nested:
        unused |= unknown(inner, {"name", key}, f"{path}.function.")
    return ToolCall(text(inner, "name", "empty name of a tool", where), arguments, call[id_key] if id_key else "")
