"""What reaches a terminal or a log. Nothing in a text that others wrote moves the cursor, hides, or turns lines around.

Models, rows, files' names, templates and the errors of libraries hold whatever someone put there. They are not cleaned
where they are read, because they are data; all that is printed comes through here.
"""

import logging
import re
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from strop.secrets import without_secrets

_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters, what turns text around, and what no encoding can write. Not the joiners of emoji and Persian."""

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_LONGEST_LINE = 4000


def shown(text: str) -> str:
    """A text with its active characters by their code, such as `\\x1b`; newlines and tabs stay."""
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def one_line(text: object, most: int = 500) -> str:
    """Someone's text within a line of ours: the middle of an overlong one is left out."""
    return shown(_short(" ".join(str(text).split()), most))


def message(text: str) -> str:
    """A message of ours, of one line or several, with whatever it quotes but secrets."""
    return "\n".join(_short(line, _LONGEST_LINE) for line in shown(without_secrets(text)).split("\n"))


def log_text(text: str) -> str:
    """The log of another machine: without its colours, and with the states of a progress bar one below the other."""
    return shown(_COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))


def _short(line: str, most: int) -> str:
    if len(line) <= most:
        return line
    return f"{line[: most * 2 // 3]} ... ({len(line) - most:,} more characters) ... {line[-most // 3 :]}"


class Terminal(Console):
    """Rich's console, for texts that others wrote. Only Rich's own styles reach the terminal as codes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, emoji=False, **settings)  # `:smile:` is what a model wrote
        self.push_render_hook(_Hook())


class _Hook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(renderable) for renderable in renderables]


class _Shown:
    """What another renderable shows, its texts cleaned and its styles kept."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _cleaned(console.render(self._inner, options))


def _cleaned(segments: Iterable[Segment]) -> Iterable[Segment]:
    for segment in segments:
        yield segment if segment.control else Segment(shown(segment.text), segment.style)


def guard_libraries() -> None:
    """Clean what libraries log and warn of, too. For a process that is ours alone: a command."""
    made = logging.getLogRecordFactory()

    def record(*args: Any, **settings: Any) -> logging.LogRecord:
        found = made(*args, **settings)
        found.msg = message(str(found.msg))
        if isinstance(found.args, tuple):  # some formatters take them one by one
            found.args = tuple(message(str(each)) if isinstance(each, str | Exception) else each for each in found.args)
        return found

    written = warnings.formatwarning
    logging.setLogRecordFactory(record)
    warnings.formatwarning = lambda *args, **settings: message(written(*args, **settings))
