"""The process that renders chat templates, which are untrusted code and may loop for ever or fill the memory.

A script of its own that imports nothing of strop, and of libraries only jinja2: it starts in a tenth of a second. The
environment is the one that transformers renders chat templates in, and tests hold the two together. The kernel ends
this process when a rendering takes too long, in whichever code; `template_process` starts another.

A request is its length, the seconds that a rendering may take, and JSON: [source, values, room, room for each character
of a row, [[turns, given, [[number of turns, generation prompt], ...]], ...]]. The answer is a status for each text, a
length for each, and the texts in UTF-8. JSON and UTF-8 here let lone surrogates pass, as Python's strings do.
"""

import datetime
import json
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

HEAD = struct.Struct(">Qd")
LENGTH = 8
TEXT, REJECTED, TOO_LONG, MEMORY = range(4)
MOST_MEMORY = 2 << 30
"""Bytes of address space."""
UNREADABLE = 4
"""Exit code."""
_LONGEST_REASON = 2000
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks answers and writes nothing of its own."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> str:
        return str(caller())


class _Dict:
    """`dict` without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
        self, *others = args
        values = dict(*others, **kwargs)
        for name in values:
            _require_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: it begins with an underscore")


def _raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Looks up once which attributes of a type are safe; asked anew each time, that is a third of a rendering."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._safe: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        key = (type(obj), attr)
        known = self._safe.get(key)
        if known is None:
            known = self._safe[key] = super().is_safe_attribute(obj, attr, value)
        return known


@lru_cache(64)
def _compiled(source: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(source)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its reasoning under both names that templates read, in the order that transformers gives."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _answers(request: list[Any], seconds: float) -> Iterator[tuple[int, str]]:
    """A status and a text for each rendering."""
    source, values, room, more_room, chats = request
    values = {"tools": None, "documents": None, **values}
    for turns, given, asked in chats:
        messages = [_with_reasoning(turn) for turn in turns]
        for num_turns, generation_prompt in asked:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            status, text = _render(
                source,
                {**values, **given, "messages": messages[:num_turns], "add_generation_prompt": generation_prompt},
            )
            if len(text) > room and len(text) > room + more_room * len(json.dumps([turns, given], ensure_ascii=False)):
                status, text = TOO_LONG, ""
            yield status, text
    signal.setitimer(signal.ITIMER_PROF, 0)


def _render(source: str, values: dict[str, Any]) -> tuple[int, str]:
    try:
        return TEXT, _compiled(source).render(values)
    except MemoryError:
        return MEMORY, ""
    except RecursionError:
        return REJECTED, "it calls itself without end"
    except Exception as error:  # a template may raise anything
        with suppress(Exception):
            return REJECTED, str(error)[:_LONGEST_REASON]
        return REJECTED, type(error).__name__


def _read(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError, MemoryError):
        sys.exit(UNREADABLE)


def _limit_memory() -> None:
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


def main() -> None:
    """Answer requests until there are no more."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _limit_memory()
    while head := source.read(HEAD.size):
        length, seconds = HEAD.unpack(head)
        answers = list(_answers(_read(source.read(length)), seconds))
        texts = [text.encode("utf-8", "surrogatepass") for _, text in answers]
        sink.write(bytes(status for status, _ in answers))
        sink.write(struct.pack(f">{len(texts)}Q", *map(len, texts)))
        sink.writelines(texts)
        sink.flush()


if __name__ == "__main__":
    main()
