"""JSON as strop takes it: what two readers could take differently, or cannot be written again, makes a bad row."""

import json
import math
from collections.abc import Callable
from typing import Any

SPACE = b" \t\n\r"
_MAX_DIGITS = 1000  # far more than any real number has; Python itself gives up at 4,300 with a plain ValueError

Decode = Callable[[str, int], tuple[Any, int]]
"""A JSON text and where to start -> the value there and where it ends."""


class BadRowError(ValueError):
    """A row that cannot be taken; the message is the fault's reason."""


def json_decoder(note: Callable[[str], None] = lambda line: None) -> json.JSONDecoder:
    """A decoder that refuses duplicate keys, infinities and giant integers; NaN, pandas' missing value, is None."""

    def constant(name: str) -> None:
        if name != "NaN":
            raise BadRowError(f"not a number: {name} is not JSON")
        note("NaN read as null")

    return json.JSONDecoder(
        object_pairs_hook=_unique_keys, parse_constant=constant, parse_float=_finite, parse_int=_integer
    )


def as_object(value: Any, may_hold_surrogates: bool) -> dict[str, Any]:
    """The value, if it is an object of text that can be written as UTF-8.

    Raises:
        BadRowError: It is not.
    """
    if not isinstance(value, dict):
        raise BadRowError(f"not an object: {_type_name(value)}")
    if may_hold_surrogates:
        _refuse_surrogates(value)
    return value


def _refuse_surrogates(value: Any) -> None:
    """json.loads accepts "\\ud800"; the string then fails to encode, far from its row."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                half = f"U+{ord(item[error.start]):04X}"
                raise BadRowError(f"lone surrogate: {half} is half a character") from error


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"the number {str(value)[:20]}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRowError(f"duplicate key: '{twice}'")
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadRowError(f"not a number: {digits[:20]} is out of range")
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise BadRowError(f"not a number: an integer of {len(digits):,} digits")
    return int(digits)
