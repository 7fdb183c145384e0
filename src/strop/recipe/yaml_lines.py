"""Reads a recipe's YAML into keys with their line numbers, and collects the errors of single keys.

Only plain data is allowed: no tags, no references, no duplicate keys. Numbers such as 2e-4 are numbers.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from strop.errors import RecipeError
from strop.recipe.schema import EXPONENT

_MAX_BYTES = 1 << 20
UNREADABLE = object()
"""Placeholder for a value that could not be read and has been reported."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was written, and where."""

    key: str
    value: Any
    where: str


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
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path}: a recipe has at most {_MAX_BYTES:,} bytes. Is this the data file?")
    try:
        reader = _YamlReader(data.decode("utf-8-sig"))
        root = reader.get_single_node()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(_explain_syntax(path, error)) from error
    if not isinstance(root, yaml.MappingNode):
        what = "empty" if root is None else "not a mapping of keys to values"
        raise RecipeError(f"{path} is {what}; a recipe needs sections such as `model:` and `data:`")
    _refuse_tag(root, path, faults)
    for key, node, line in _pairs(root, path, faults):
        if key in sections and isinstance(node, yaml.MappingNode):
            _refuse_tag(node, path, faults)
            for inner, value, inner_line in _pairs(node, path, faults):
                yield Entry(f"{key}.{inner}", _construct(reader, value, path, faults), f"{path}:{inner_line}")
        elif key in sections and _is_null(node):
            continue
        else:
            yield Entry(key, _construct(reader, node, path, faults), f"{path}:{line}")


def parse_value(text: str) -> Any:
    """Read the value of an override.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: It is not valid YAML.
    """
    return yaml.load(text, _YamlReader)


def _explain_syntax(path: Path, error: Exception) -> str:
    problem = str(getattr(error, "problem", None) or str(error).replace("\n", " "))
    mark = getattr(error, "problem_mark", None)
    hint = "; indent with spaces" if "\\t" in problem else ""
    if "alias" in str(getattr(error, "context", "")) or "reference" in problem:
        hint = '; put quotes around a value that begins with *, such as "*.jsonl"'
    return f"{path}{f':{mark.line + 1}' if mark else ''} is not valid YAML: {problem}{hint}"


def _refuse_tag(node: yaml.MappingNode, path: Path, faults: list[str]) -> None:
    if node.tag != "tag:yaml.org,2002:map":
        faults.append(f"{path}:{node.start_mark.line + 1}: recipes do not allow tags such as {node.tag}")


def _pairs(mapping: yaml.MappingNode, path: Path, faults: list[str]) -> Iterator[tuple[str, yaml.Node, int]]:
    lines: dict[str, int] = {}
    for key_node, value in mapping.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            faults.append(f"{path}:{line}: a key must be a name, not a list or a mapping")
            continue
        key = str(key_node.value)
        if key in lines:
            faults.append(f"{path}:{line}: {key} is set twice, first in line {lines[key]}; keep one")
            continue
        lines[key] = line
        yield key, value, line


def _construct(reader: yaml.SafeLoader, node: yaml.Node, path: Path, faults: list[str]) -> Any:
    try:
        return reader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error)
        faults.append(f"{path}:{node.start_mark.line + 1}: {problem}")
        return UNREADABLE


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
