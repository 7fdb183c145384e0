"""Recipe files and overrides -> a `Recipe`, or one error that lists every fault with its line."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from strop.errors import RecipeError
from strop.recipe import DataSection, LoraSection, ModalSection, ModelSection, Recipe, Section, TrainSection
from strop.recipe_aliases import ALIASES, TRANSLATED, UNDERSTOOD

SHIPPED = Path(__file__).parent / "recipes"
_SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "lora": LoraSection,
    "data": DataSection,
    "train": TrainSection,
    "modal": ModalSection,
}
_HOME = {key: section for section, schema in _SECTIONS.items() for key in schema.model_fields}
_MAX_BYTES = 1 << 20
_SECRET = re.compile(r"^(hf_|sk-|ghp_|github_pat_|ak-|as-)[A-Za-z0-9_-]{16,}$|^[0-9a-f]{40}$")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key as someone wrote it, and where."""

    key: str
    value: Any
    where: str


def read_recipe(name_or_path: str, overrides: Mapping[str, Any] | Sequence[str]) -> Recipe:
    """See `strop.recipe.load_recipe`."""
    path = _find(name_or_path)
    reader = _Reader()
    reader.place(_entries_of_file(path, reader.faults), "of the file")
    reader.place(_entries_of_overrides(overrides, reader.faults), "on the command line", replacing=True)
    return reader.finish(path.stem)


def starter_recipe(train_file: str, model: str) -> str:
    """The text of a first recipe for someone's rows, every line explained; loads as it is."""
    template = (SHIPPED / "starter.yaml.txt").read_text(encoding="utf-8")
    quote = {"MODEL": yaml_scalar(model), "TRAIN_FILE": yaml_scalar(train_file)}
    return re.sub("MODEL|TRAIN_FILE", lambda match: quote[match[0]], template)


def yaml_scalar(text: str) -> str:
    """A string as YAML writes it on one line."""
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).split("\n")[0]


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if name_or_path in shipped and not path.is_file():
        return SHIPPED / f"{name_or_path}.yaml"
    if path.is_dir():
        raise RecipeError(f"{path} is a folder, and not a run's; give a recipe file or one of {', '.join(shipped)}")
    if not path.exists():
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise RecipeError(
            f"there is no recipe file {name_or_path} and no shipped recipe of that name"
            f"{_nearest(name_or_path, [*shipped, *siblings])}. Shipped: {', '.join(shipped)}"
        )
    return path


class _YamlReader(yaml.SafeLoader):
    """Plain data only; numbers such as 2e-4, which YAML 1.1 takes for text, are numbers."""


_YamlReader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _entries_of_file(path: Path, faults: list[str]) -> Iterator[_Entry]:
    """Every key of a recipe file as `section.key` or a bare name, with its line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{path} has {len(data):,} bytes; a recipe has at most {_MAX_BYTES:,}. Is it the data?")
    try:
        reader = _YamlReader(data.decode("utf-8-sig"))
        root = reader.get_single_node()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(root, yaml.MappingNode):
        what = "empty" if root is None else "not a mapping of keys to values"
        raise RecipeError(f"{path} is {what}; a recipe has sections such as `model:` and `data:`")
    for key, node, line in _pairs(root, path, faults):
        if key in _SECTIONS and isinstance(node, yaml.MappingNode):
            for inner, value, inner_line in _pairs(node, path, faults):
                yield _Entry(f"{key}.{inner}", _construct(reader, value, path, faults), f"{path}:{inner_line}")
        elif key in _SECTIONS and _is_null(node):
            continue
        else:
            yield _Entry(key, _construct(reader, node, path, faults), f"{path}:{line}")


def _pairs(mapping: yaml.MappingNode, path: Path, faults: list[str]) -> Iterator[tuple[str, yaml.Node, int]]:
    lines: dict[str, int] = {}
    for key_node, value in mapping.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
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
        return None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _entries_of_overrides(overrides: Mapping[str, Any] | Sequence[str], faults: list[str]) -> Iterator[_Entry]:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if key in _SECTIONS and isinstance(value, Mapping):
                yield from (_Entry(f"{key}.{inner}", given, "override") for inner, given in value.items())
            else:
                yield _Entry(key, value, "override")
        return
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            faults.append(f"{text!r} is not an override; write key=value, such as train.max_steps=60")
            continue
        try:
            yield _Entry(key.strip(), yaml.load(value, _YamlReader), f"{text!r}")
        except yaml.YAMLError:
            faults.append(f"{text!r}: the value is not valid YAML; quote it")


class _Reader:
    """Collects keys into sections, and everything that is wrong with them."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._values: dict[str, dict[str, Any]] = {}
        self._written: dict[str, _Entry] = {}
        self._name: str | None = None

    def place(self, entries: Iterator[_Entry], source: str, replacing: bool = False) -> None:
        """Put every entry where it belongs; two that mean the same key must agree, unless they replace."""
        seen: dict[str, _Entry] = {}
        for entry in entries:
            if _holds_secret(entry.value):
                self.faults.append(
                    f"{entry.where}: {entry.key} looks like an access token; recipes are copied into run folders. "
                    "Put it in the environment (HF_TOKEN) instead"
                )
                continue
            placed = self._resolve(entry)
            if placed is None:
                continue
            target, value = placed
            other = seen.setdefault(target, entry)
            if other is not entry and self._written[target].value != value:
                self.faults.append(
                    f"{entry.where}: {entry.key}={entry.value} contradicts {other.key}={other.value} {source}; "
                    f"both mean {target}"
                )
                continue
            if target == "name":
                self._name = value
                continue
            section, key = target.split(".", 1)
            self._written[target] = replace(entry, value=value)
            self._values.setdefault(section, {})[key] = value

    def _resolve(self, entry: _Entry) -> tuple[str, Any] | None:
        """The key that an entry means and its value; None if it changes nothing or is a fault, which is noted."""
        written = entry.key
        section, _, key = written.rpartition(".")
        if (section in _SECTIONS and key in _SECTIONS[section].model_fields) or written == "name":
            return written, entry.value
        if section and section not in _SECTIONS:
            self.faults.append(f"{entry.where}: unknown section {section!r}{_nearest(section, list(_SECTIONS))}")
            return None
        if key in TRANSLATED or key in UNDERSTOOD:
            return self._translate(entry, key)
        target = f"{_HOME[key]}.{key}" if key in _HOME else ALIASES.get(key)
        if target is None:
            known = [*(f"{home}.{name}" for name, home in _HOME.items()), *_HOME, *ALIASES, *TRANSLATED]
            self.faults.append(f"{entry.where}: unknown key {written}={entry.value!r}{_nearest(written, known)}")
            return None
        if key not in _HOME or (section and section != _HOME[key]):
            self.notes.append(f"{written}: read as {target}")
        return target, _unwrap_datasets(entry.value) if target.startswith("data.") else entry.value

    def _translate(self, entry: _Entry, key: str) -> tuple[str, Any] | None:
        if key in UNDERSTOOD:
            agreeing, reason = UNDERSTOOD[key]
            if entry.value in agreeing or entry.value is None:
                self.notes.append(f"{entry.key}={entry.value}: changes nothing; {reason}")
            else:
                self.faults.append(f"{entry.where}: {entry.key}={entry.value} cannot be done; {reason}")
            return None
        try:
            placed = TRANSLATED[key](entry.value)
        except (TypeError, ValueError):
            self.faults.append(f"{entry.where}: {entry.key}={entry.value!r} is not a number")
            return None
        if placed is None:
            self.notes.append(f"{entry.key}={entry.value}: changes nothing")
        else:
            self.notes.append(f"{entry.key}={entry.value}: read as {placed[0]}={placed[1]}")
        return placed

    def finish(self, stem: str) -> Recipe:
        """The recipe, or all faults together."""
        if "name" not in self._values and self._name is None:
            self._name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "recipe"
        try:
            recipe = Recipe(name=self._name, notes=tuple(self.notes), **self._values)
        except ValidationError as error:
            self.faults += [self._explain(dict(fault)) for fault in error.errors()]
            recipe = None
        if self.faults or recipe is None:
            raise RecipeError("\n".join(self.faults))
        return recipe

    def _explain(self, fault: dict[str, Any]) -> str:
        """One of pydantic's faults in a person's words."""
        path = [str(part) for part in fault["loc"] if str(part).isidentifier()][:2]
        key = ".".join(path)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            return f"{key} is missing: {_describe(path)}"
        entry = self._written.get(key)
        if fault["type"] == "value_error":
            return f"{path[0]}.{message}" if len(path) == 1 else message
        where = f"{entry.where}: " if entry else ""
        return f"{where}{key}={fault['input']!r}: {message[0].lower()}{message[1:]}"


def _describe(path: list[str]) -> str:
    if len(path) == 1:
        return "every recipe needs this section"
    field = _SECTIONS[path[0]].model_fields[path[1]]
    return (field.description or "").rstrip(".")


def _unwrap_datasets(value: Any) -> Any:
    """Axolotl's list of {path: ...} is a list of files here."""
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, dict) and "path" in item for item in items):
        return [item["path"] for item in items]
    return value


def _holds_secret(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_SECRET.match(value.strip()))
    if isinstance(value, list):
        return any(_holds_secret(item) for item in value)
    return isinstance(value, dict) and any(_holds_secret(item) for item in value.values())


def _nearest(word: str, known: list[str]) -> str:
    """`; did you mean ...?`, or nothing if nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or difflib.get_close_matches(
        word.rpartition(".")[2], known, n=1, cutoff=0.6
    )
    if not close:
        return ""
    target = ALIASES.get(close[0], f"{_HOME[close[0]]}.{close[0]}" if close[0] in _HOME else close[0])
    return f"; did you mean {target}?"
