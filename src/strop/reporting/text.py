"""Figures and foreign text as a reader sees them."""

import math
import re
from typing import Any

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""Control characters and what turns text around: an answer that holds them must not look like one that does not."""


def shown(text: str) -> str:
    """Text that shows all it holds: invisible characters by their code, lone surrogates replaced."""
    sound = text.replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8")
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", sound)


def cut(value: Any, most: int) -> str:
    """At most so many characters of a value, and how many are left out."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a damaged file holds in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one for whatever else a damaged file holds in its place."""
    return value if isinstance(value, dict) else {}


def count(value: Any) -> str:
    """A whole number with thousands apart."""
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def short(value: float | None) -> str:
    """A figure to three digits."""
    if value is None:
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return "–" if value is None else f"{value:.0%}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points."""
    return "–" if value is None else f"{100 * value:.0f} pp"


def dollars(value: float | None) -> str:
    """An amount; cents matter below a hundred."""
    return "–" if value is None else f"${value:,.2f}"


def size(num_bytes: float) -> str:
    """Of a file."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
