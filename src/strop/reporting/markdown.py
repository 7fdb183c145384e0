"""Foreign text in Markdown: shown as it is, and never taken for markup."""

import re
from typing import Any

from strop.reporting.text import shown

_HARMLESS = re.compile(r"[\w ,;.%()–−+/-]*")  # of these only _ means something, and www. as GitHub reads it


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
