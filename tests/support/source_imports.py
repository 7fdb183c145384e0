"""What the modules of a source tree import, when, and in which circles: read from the text, nothing is run."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

When = Literal["module", "function", "typing"]


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
        importer: The importing module, such as `strop.data.store`.
        imported: What it imports: a module of the tree, or a foreign module in full.
        when: As the module is loaded, in a function, or under `if TYPE_CHECKING`.
        line: Where.
    """

    importer: str
    imported: str
    when: When
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported} ({self.when})"


class SourceTree:
    """The modules of a package.

    Args:
        folder: The package's folder; its name is the package's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.files = {self._module(path): path for path in sorted(folder.rglob("*.py"))}
        self.trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.files.items()}
        self.imports = [found for module in self.files for found in self._imports_of(module)]

    def is_own(self, name: str) -> bool:
        """Whether a dotted name is in this package."""
        return name.partition(".")[0] == self.name

    def part(self, module: str) -> str:
        """The folder or file right under the package that a module is in; the package's own `__init__` is ""."""
        return module.split(".")[1] if "." in module else ""

    def own_imports(self, *when: When) -> list[Import]:
        """Imports within the package."""
        return [found for found in self.imports if found.when in when and self.is_own(found.imported)]

    def circles(self, *when: When) -> list[list[str]]:
        """Sets of modules that reach each other by imports."""
        edges: dict[str, set[str]] = {module: set() for module in self.files}
        for found in self.own_imports(*when):
            if found.imported in edges:
                edges[found.importer].add(found.imported)
        reached = {module: _reachable(edges, module) for module in edges}
        circles = {
            frozenset(other for other in reached[module] if module in reached[other])
            for module in edges
            if module in reached[module]
        }
        return sorted(sorted(circle) for circle in circles)

    def loaded_with(self, module: str) -> set[str]:
        """Every module, foreign ones too, that is imported when `module` is."""
        edges: dict[str, set[str]] = {}
        for found in self.imports:
            if found.when == "module":
                edges.setdefault(found.importer, set()).add(found.imported)
        for name in self.files:
            if name.count(".") > 1:  # a module runs its packages' __init__ first; the outermost is light, by a test
                edges.setdefault(name, set()).add(name.rpartition(".")[0])
        return _reachable(edges, module) | {module}

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.folder).with_suffix("").parts
        return ".".join((self.name, *(parts[:-1] if parts[-1] == "__init__" else parts)))

    def _imports_of(self, module: str) -> Iterator[Import]:
        for node, when in _import_statements(self.trees[module], "module"):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                assert not node.level, f"{self.files[module]}:{node.lineno}: imports are absolute"
                names = [self._target(str(node.module), alias.name) for alias in node.names]
            yield from (Import(module, name, when, node.lineno) for name in dict.fromkeys(names))

    def _target(self, module: str, name: str) -> str:
        """`from a import b` imports the module a.b if there is one, else something of a."""
        inner = f"{module}.{name}"
        return inner if inner in self.files else module


def _import_statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _import_statements(child, "function")
        elif isinstance(child, ast.If) and when == "module" and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _import_statements(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _import_statements(ast.Module([statement], []), when)
        else:
            yield from _import_statements(child, when)


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    """What can be reached from `start` in one step or more."""
    found: set[str] = set()
    waiting = list(edges.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += edges.get(node, ())
    return found
