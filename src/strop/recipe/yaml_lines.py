"""Reads a recipe's YAML into keys with their line numbers, and collects the errors of single keys.

Only plain data is allowed: no tags, no references, no duplicate keys. Numbers such as 2e-4 are numbers.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from strop.errors import RecipeError
from strop.recipe.schema import EXPONENT
from strop.resolve import read_ordinary

_MAX_BYTES = 1 << 20
UNREADABLE = object()
"""Placeholder for a value that could not be read and has been reported."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was written, and where."""

    key: str
    value: Any
    where: str


class Keys(dict[str, Any]):
    """A mapping inside a value, with the place of each of its keys."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str]) -> None:
        super().__init__(values)
        self.places = places


class _YamlReader(yaml.SafeLoader):
    """Only plain data: numbers such as 2e-4 are numbers, dates are text, and references are rejected."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can expand beyond any memory
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="*name is a reference, which recipes do not allow", problem_mark=mark)
        return super().compose_node(parent, index)


_YamlReader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlReader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789."))


def readable_text(path: Path) -> str:
    """A recipe's text as far as it can be read, for what must not be quoted of it."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def entries_of_file(path: Path, sections: Collection[str], faults: list[str]) -> Iterator[Entry]:
    """Yield every key of a recipe file as `section.key` or a bare name, with its line.

    Args:
        path: The file.
        sections: Names whose mappings are sections.
        faults: Errors of single keys are appended to this list.

    Raises:
        RecipeError: The file as a whole cannot be read.
    """
    try:
        data = read_ordinary(path, _MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path}: a recipe has at most {_MAX_BYTES:,} bytes{_perhaps_rows(path)}")
    try:
        reader = _YamlReader(data.decode("utf-8-sig"))
        root = reader.get_single_node()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}){_perhaps_rows(path)}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(_explain_syntax(path, error)) from error
    if not isinstance(root, yaml.MappingNode):
        what = "empty" if root is None else "not a mapping of keys to values"
        raise RecipeError(
            f"{path} is {what}; a recipe needs sections such as `model:` and `data:`{_perhaps_rows(path)}"
        )
    values = _Values(reader, lambda node: f"{path}:{node.start_mark.line + 1}", faults)
    values.refuse_tag(root)
    for key, node, where in values.pairs(root):
        if key in sections and isinstance(node, yaml.MappingNode):
            values.refuse_tag(node)
            for inner, value, inner_where in values.pairs(node):
                yield Entry(f"{key}.{inner}", values.read(value), inner_where)
        elif not (key in sections and _is_null(node)):
            yield Entry(key, values.read(node), where)


def parse_value(text: str, where: str, faults: list[str]) -> Any:
    """Read the value of an override; `UNREADABLE` if it has a fault, which is appended to the list.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: It is not valid YAML.
    """
    reader = _YamlReader(text)
    node = reader.get_single_node()
    return None if node is None else _Values(reader, lambda node: where, faults).read(node)


class _Values:
    """Constructs the values of a document's nodes, and appends the fault of one that has no value to a list."""

    def __init__(self, reader: _YamlReader, where: Callable[[yaml.Node], str], faults: list[str]) -> None:
        self._reader = reader
        self._where = where
        self._faults = faults

    def read(self, node: yaml.Node) -> Any:
        """The value of a node, or `UNREADABLE`."""
        before = len(self._faults)
        value = self._value(node)
        return value if len(self._faults) == before else UNREADABLE

    def pairs(self, mapping: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, str]]:
        """The keys of a mapping with their values and places; a key that is set twice is a fault."""
        places: dict[str, str] = {}
        for key_node, value in mapping.value:
            where = self._where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._faults.append(f"{where}: a key must be a name, not a list or a mapping")
                continue
            key = str(key_node.value)
            if key in places:
                line = places[key].rpartition(":")[2]
                first = f", first in line {line}" if line.isdigit() else ""
                self._faults.append(f"{where}: {key} is set twice{first}; keep one")
                continue
            places[key] = where
            yield key, value, where

    def refuse_tag(self, node: yaml.Node) -> None:
        """A mapping or list with a tag is a fault."""
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._faults.append(f"{self._where(node)}: recipes do not allow tags such as {node.tag}")

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self.refuse_tag(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        found = [(key, self._value(value), where) for key, value, where in self.pairs(node)]
        return Keys({key: value for key, value, _ in found}, {key: where for key, _, where in found})

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._reader.construct_object(node)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            problem = getattr(error, "problem", None) or str(error)
            self._faults.append(f"{self._where(node)}: not valid YAML: {problem}")
            return UNREADABLE


def _explain_syntax(path: Path, error: Exception) -> str:
    problem = str(getattr(error, "problem", None) or str(error).replace("\n", " "))
    mark = getattr(error, "problem_mark", None)
    hint = "; indent with spaces" if "\\t" in problem else ""
    if "alias" in str(getattr(error, "context", "")) or "reference" in problem:
        hint = '; put quotes around a value that begins with *, such as "*.jsonl"'
    return f"{path}{f':{mark.line + 1}' if mark else ''} is not valid YAML: {problem}{hint}{_perhaps_rows(path)}"


def _perhaps_rows(path: Path) -> str:
    """The way on for someone who names a file of rows where a recipe is wanted."""
    if path.suffix in (".yaml", ".yml"):
        return ""
    return f"; if these are your rows, `strop init {path}` writes a recipe for them"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
