"""JSON files of an older, newer or damaged strop, read as today's types: whatever does not fit is dropped."""

import json
import math
from collections.abc import Collection
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

_T = TypeVar("_T")
_Path = tuple[int | str, ...]


def parse_json(data: bytes) -> Any:
    """What the text holds, with None for numbers that are not finite.

    Raises:
        ValueError, RecursionError: It is not JSON.
    """
    return json.loads(data, parse_float=_finite, parse_constant=lambda name: None)


def fit(kind: type[_T], contents: Any) -> _T | None:
    """As much of some JSON as is a `kind`, a dataclass of plain values and other such dataclasses.

    A value of another type is dropped with its key, and an object that lacks a required key is dropped as a whole.
    Keys that the type does not have are ignored.

    Returns:
        None if a required key of `kind` itself is missing or does not fit.
    """
    while True:
        try:
            fitting: _T = _adapter(kind).validate_python(contents)  # type: ignore[arg-type]  # a class is hashable
            return fitting
        except ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
        rest = _without(
            contents, [fault["loc"][:-1] if fault["type"] == "missing" else fault["loc"] for fault in faults]
        )
        if rest is None or rest == contents:
            return None
        contents = rest


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _without(value: Any, paths: Collection[_Path]) -> Any:
    """The value without what the paths lead to; None if one of them leads to the value itself."""
    if () in paths:
        return None
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    below = {key: [path[1:] for path in paths if path[0] == key] for key, _ in items}
    kept = [(key, _without(each, below[key])) for key, each in items if () not in below[key]]
    if isinstance(value, dict):
        return dict(kept)
    return [each for _, each in kept] if isinstance(value, list) else value


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None
