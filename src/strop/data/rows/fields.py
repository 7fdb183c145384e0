"""The values of a row, checked one by one."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from strop.data.json_values import BadRowError, json_decoder

_DECODER = json_decoder()


class RowError(ValueError):
    """A row that cannot be used; the message is the fault's reason."""


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, or an empty text, list or object. Parquet fills missing fields with null."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def first_key(values: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of some keys that has a value."""
    return next((key for key in keys if not is_empty(values.get(key))), None)


def unknown(values: Mapping[str, Any], known: Collection[str | None], path: str) -> set[str]:
    """The keys that have a value and are not known, each behind the path to them."""
    return {f"{path}{key}" for key, value in values.items() if key not in known and not is_empty(value)}


def get(row: Mapping[str, Any], key: str, where: str = "") -> Any:
    """A field that must be there."""
    if key not in row:
        raise RowError(f"missing field: '{key}'{where} (the keys are {', '.join(map(repr, row)) or 'none'})")
    if row[key] is None:
        raise RowError(f"null: '{key}'{where}")
    return row[key]


def text(row: Mapping[str, Any], key: str, if_empty: str | None = None, where: str = "") -> str:
    """A field that must be text; `if_empty` is the fault of an empty one, None if it may be empty.

    Numbers are not turned into text: 0.10 would become 0.1, which is not what the file says.
    """
    value = get(row, key, where)
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
        raise RowError(f"not text: '{key}'{where} is of type {type(value).__name__}, but must be text{hint}")
    if if_empty and not value.strip():
        raise RowError(f"{if_empty}: '{key}'{where}")
    return value


def parsed(value: Any, what: str) -> Any:
    """A list or object that may be written as JSON text, as in the cell of a CSV file: as strict as a row itself."""
    if not isinstance(value, str):
        return value
    try:
        found = _DECODER.decode(value)
        if "\\u" in value:
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeEncodeError:
        raise RowError(f"lone surrogate: {what} has half a character") from None
    except BadRowError as error:
        raise RowError(f"{error}, in {what}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"bad JSON: {what}: {getattr(error, 'msg', 'nested too deeply')}") from None


def objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects, which may be written as JSON text; none if it is empty."""
    found = [] if is_empty(value) else parsed(value, what)
    if is_empty(found):
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise RowError(f"not a list of objects: {what}")
    return found
