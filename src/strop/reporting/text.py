"""Figures and foreign text as a reader sees them, on a page and in Markdown, where no text is taken for markup."""

import re
from typing import Any

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""Control characters and what turns text around: an answer that holds them must not look like one that does not."""

_HARMLESS = re.compile(r"[\w ,;.%()–−+/-]*")  # of these only _ means something, and www. as GitHub reads it


def shown(text: str) -> str:
    """Text that shows all it holds: invisible characters by their code, lone surrogates replaced."""
    sound = text.replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8")
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", sound)


def cut(text: str, most: int) -> str:
    """At most so many characters of a text, and how many more there are."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def both_ends(text: str, most: int) -> str:
    """At most so many characters of an answer, from both of its ends, and how many there are between them."""
    end = most // 2
    between = f" … ({len(text) - most:,} more characters) … "
    return text if len(text) <= most else f"{text[: most - end]}{between}{text[-end:]}"


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return "–" if value is None else f"{value:,.0f}"


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


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def inline(value: Any) -> Markdown:
    """A value within a line: as it is if no character of it means anything, else as code."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(shown(str(value)).split())
    if _HARMLESS.fullmatch(text) and "_" not in text and "www." not in text.lower():
        return Markdown(text)
    runs = re.findall("`+", text)
    ticks = "`" * next(n for n in range(1, len(text) + 2) if "`" * n not in runs)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{space}{text}{space}{ticks}")


def cell(value: Any) -> Markdown:
    """A value within a table, whose cells end at every | that is not escaped, in code too."""
    return Markdown(inline(value).replace("|", "\\|"))


def fenced(text: str, language: str = "") -> Markdown:
    """A block of code that no line of the text can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{shown(text)}\n{fence}")
