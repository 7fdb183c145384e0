"""Reads recipe files and overrides into a `Recipe`, or raises one error that lists every fault with its line."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from strop.errors import RecipeError
from strop.recipe.aliases import ALIASES, TRANSLATED, UNDERSTOOD, translate_value
from strop.recipe.schema import (
    DataSection,
    LoraSection,
    ModalSection,
    ModelSection,
    Recipe,
    Section,
    TrainSection,
    contradictions,
)
from strop.recipe.yaml_lines import UNREADABLE, Entry, entries_of_file, parse_value
from strop.resolve import read_chat_template

SHIPPED = Path(__file__).parents[1] / "recipes"
_SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "lora": LoraSection,
    "data": DataSection,
    "train": TrainSection,
    "modal": ModalSection,
}
_HOME = {key: section for section, schema in _SECTIONS.items() for key in schema.model_fields}
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])((hf_|ghp_|ak-|as-)[A-Za-z0-9]{16,}|github_pat_\w{16,}|sk-(proj-|ant-)?[A-Za-z0-9_]{16,})"
)
_SECRET_KEY = re.compile(r"(api_?key|(hf|hub|auth|access)_token|secret|password)$", re.IGNORECASE)


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, with some keys replaced.

    Args:
        name_or_path: A YAML file, or a name from `list_recipes`.
        overrides: `key=value` strings, or a mapping, nested or with dotted keys.

    Raises:
        RecipeError: The recipe has errors; the message lists all of them.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    try:
        path = _find(str(name_or_path))
        reader = _Reader(str(path))
        reader.place(entries_of_file(path, _SECTIONS, reader.faults), "of the file")
        reader.place(_entries_of_overrides(overrides, reader.faults), "on the command line", replacing=True)
        return reader.finish(path.stem)
    except RecipeError as error:  # the message may quote a token, and messages end up in logs
        raise RecipeError(_SECRET.sub("(a secret)", str(error))) from None


def list_recipes() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The text of a shipped recipe.

    Raises:
        RecipeError: There is none with this name.
    """
    if name not in list_recipes():
        raise RecipeError(f"there is no shipped recipe {name!r}; shipped recipes are {', '.join(list_recipes())}")
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def starter_recipe(train_file: str, model: str) -> str:
    """The text of a first recipe for someone's rows, with every line explained; it loads without changes."""
    template = (SHIPPED / "starter.yaml.txt").read_text(encoding="utf-8")
    quote = {"MODEL": yaml_scalar(model), "TRAIN_FILE": yaml_scalar(train_file)}
    return re.sub("MODEL|TRAIN_FILE", lambda match: quote[match[0]], template)


def yaml_scalar(text: str) -> str:
    """A string as one line of YAML."""
    plain = yaml.safe_dump(text, width=10**6).removesuffix("...\n").rstrip("\n")
    return yaml.safe_dump(text, default_style='"', width=10**6).rstrip("\n") if "\n" in plain else plain


def _find(name_or_path: str) -> Path:
    path = Path(name_or_path)
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if name_or_path in shipped and not path.is_file():
        return SHIPPED / f"{name_or_path}.yaml"
    if os.path.isdir(path):  # unlike Path.is_dir, this is False for a name too long to exist
        raise RecipeError(f"{path} is a folder but not a run folder; give a recipe file or one of {', '.join(shipped)}")
    if not os.path.exists(path):
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if os.path.isdir(path.parent) else []
        raise RecipeError(
            f"there is no recipe file {_show(name_or_path)}, and no shipped recipe with that name"
            f"{_nearest(name_or_path, [*shipped, *siblings]) or '.'} Shipped recipes: {', '.join(shipped)}"
        )
    return path


def _entries_of_overrides(overrides: Mapping[str, Any] | Sequence[str], faults: list[str]) -> Iterator[Entry]:
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            key = str(name)
            if key in _SECTIONS and isinstance(value, Mapping):
                yield from (Entry(f"{key}.{inner}", given, "override") for inner, given in value.items())
            else:
                yield Entry(key, value, "override")
        return
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            faults.append(f"{_show(text)} is not an override; write key=value, such as train.max_steps=60")
            continue
        try:
            yield Entry(key.strip(), parse_value(value), "override")
        except (yaml.YAMLError, ValueError, RecursionError):
            faults.append(f"override: {_show(text)}: the value is not valid YAML; quote it")


class _Reader:
    """Collects keys into sections, together with every error in them."""

    def __init__(self, source: str) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._source = source
        self._values: dict[str, Entry] = {}
        self._faulty: set[str] = set()

    def place(self, entries: Iterator[Entry], source: str, replacing: bool = False) -> None:
        """Add every entry under the key it means; two entries of one source for the same key must agree."""
        seen: dict[str, Entry] = {}
        for entry in entries:
            for target, value in self._resolve(entry, report_place=not replacing).items():
                other = seen.setdefault(target, entry)
                if other is not entry and self._values[target].value != value:
                    self.faults.append(
                        f"{entry.where}: {entry.key}={_show(entry.value)} contradicts "
                        f"{other.key}={_show(other.value)} {source}; both mean {target}"
                    )
                    continue
                self._values[target] = replace(entry, value=value)

    def _resolve(self, entry: Entry, report_place: bool) -> dict[str, Any]:
        """The keys that an entry means and their values; empty for one that changes nothing or is an error."""
        section, _, key = entry.key.rpartition(".")
        target = _target(entry.key)
        if entry.value is UNREADABLE or _holds_secret(entry):
            self._faulty.add(target or entry.key)
            if entry.value is not UNREADABLE:
                self._fault(
                    f"{entry.where}: {entry.key} looks like an access token, but recipes are copied to run folders; "
                    "put it in the environment (HF_TOKEN) instead"
                )
            return {}
        if section not in _SECTIONS and (section or (isinstance(entry.value, dict) and not target)):
            name = section or key
            near = _nearest(name, list(_SECTIONS)) or f"; the sections are {', '.join(_SECTIONS)}"
            return self._fault(f"{entry.where}: unknown section {_show(name)}{near}")
        if entry.key in _SECTIONS and target is None:
            example = f"{key}.{next(iter(_SECTIONS[key].model_fields))}"
            return self._fault(
                f"{entry.where}: {key}={_show(entry.value)}: {key} is a section with keys such as {example}"
            )
        if key in TRANSLATED or key in UNDERSTOOD:
            return self._translate(entry, key)
        if target is None:
            written = entry.key if entry.key.isprintable() else _show(entry.key)
            known = [*(f"{home}.{name}" for name, home in _HOME.items()), *_HOME, *ALIASES, *TRANSLATED]
            return self._fault(f"{entry.where}: unknown key {written}={_show(entry.value)}{_nearest(entry.key, known)}")
        return self._read_as(entry, target, report_place or key not in _HOME or bool(section))

    def _read_as(self, entry: Entry, target: str, report: bool) -> dict[str, Any]:
        try:
            values = translate_value(target, entry.value)
        except ValueError as error:
            self._faulty.add(target)
            return self._fault(f"{entry.where}: {entry.key}={_show(entry.value)}: {error}")
        if values != {target: entry.value}:
            self.notes += [f"{entry.key}: read as {key}={_show(value)}" for key, value in values.items()]
        elif report and entry.key != target:
            self.notes.append(f"{entry.key}: read as {target}")
        return values

    def _translate(self, entry: Entry, key: str) -> dict[str, Any]:
        written = f"{entry.key}={_show(entry.value)}"
        if entry.value is None and key != "adapter":  # Axolotl's blank adapter means full fine-tuning
            self.notes.append(f"{entry.key} is blank: ignored")
            return {}
        if key in UNDERSTOOD:
            agreeing, reason = UNDERSTOOD[key]
            if entry.value in agreeing:
                self.notes.append(f"{written}: changes nothing; {reason}")
                return {}
            if key not in TRANSLATED:
                return self._fault(f"{entry.where}: {written} is not supported; {reason}")
        try:
            target, value = TRANSLATED[key](entry.value)
        except TypeError:
            return self._fault(f"{entry.where}: {written} is not a number")
        except ValueError as error:
            return self._fault(f"{entry.where}: {written}: {error}")
        self.notes.append(f"{written}: read as {target}={value}")
        return {target: value}

    def _fault(self, text: str) -> dict[str, Any]:
        self.faults.append(text)
        return {}

    def finish(self, stem: str) -> Recipe:
        """Build the recipe, or raise all errors together."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "recipe"
        values: dict[str, Any] = {"name": name, "model": {}, "data": {}}
        for target, entry in self._values.items():
            section, _, key = target.rpartition(".")
            (values.setdefault(section, {}) if section else values)[key] = entry.value
        try:
            recipe = Recipe(**values)
            recipe = self._with_chat_template(recipe)
            recipe = recipe.model_copy(update={"notes": (*self.notes, *_remarks(recipe.train))})
        except ValidationError as error:
            self._explain(error)
            self._explain_contradictions(values)
            recipe = None
        if self.faults or recipe is None:
            raise RecipeError("\n".join(self.faults))
        return recipe

    def _with_chat_template(self, recipe: Recipe) -> Recipe:
        """The recipe with the text of a chat template in place of its file, which may change while a run trains."""
        given = recipe.data.chat_template
        if given is None:
            return recipe
        try:
            source = read_chat_template(given)
        except RecipeError as error:
            self.faults.append(f"{self._values['data.chat_template'].where}: {error}")
            return recipe
        if source != given:
            self.notes.append(f"data.chat_template: read from {given}")
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"chat_template": source})})

    def _explain(self, error: ValidationError) -> None:
        """Record pydantic's errors in readable words, one per key."""
        by_key: dict[str, dict[str, Any]] = {}
        for details in error.errors():
            key = ".".join([str(part) for part in details["loc"] if str(part).isidentifier()][:2])
            if key and (key not in by_key or by_key[key]["type"] == "literal_error"):
                by_key[key] = dict(details)
        for key, fault in by_key.items():
            if key in self._faulty:
                continue
            self._faulty.add(key)
            if fault["type"] == "missing":
                self.faults.append(f"{self._source}: {key} is missing: {_describe(key)}")
                continue
            entry = self._values[key]
            message = fault["msg"].removeprefix("Value error, ")
            message = message if fault["type"] == "value_error" else message[0].lower() + message[1:]
            near = ""
            if fault["type"] == "literal_error":
                near = _nearest(str(entry.value), re.findall("'([^']+)'", fault["ctx"]["expected"]))
            self.faults.append(f"{entry.where}: {key}={_show(entry.value)}: {message}{near}")

    def _explain_contradictions(self, values: dict[str, Any]) -> None:
        """Record contradictions between keys that are valid by themselves; others may only follow from a faulty key."""
        sound = {
            section: {
                key: value for key, value in values.get(section, {}).items() if f"{section}.{key}" not in self._faulty
            }
            for section in ("model", "data", "train")
        }
        model = ModelSection(**{"model_name_or_path": "any", **sound["model"]})
        data = DataSection(**{"train_file": "any", **sound["data"]})
        for keys, text in contradictions(model, data, TrainSection(**sound["train"])):
            if self._faulty.isdisjoint(keys):
                first = next((self._values[key] for key in keys if key in self._values), None)
                self.faults.append(f"{first.where if first else self._source}: {text}")


def _target(written: str) -> str | None:
    """The key that a name means, with or without its section; None if there is none, or if the value decides."""
    section, _, key = written.rpartition(".")
    if written == "name" or (section in _SECTIONS and key in _SECTIONS[section].model_fields):
        return written
    return f"{_HOME[key]}.{key}" if key in _HOME else ALIASES.get(key)


def _remarks(train: TrainSection) -> Iterator[str]:
    """Warn about values that are allowed but probably not intended."""
    if 0 < train.max_steps <= train.warmup_steps:
        yield (
            f"train.warmup_steps={train.warmup_steps}: with train.max_steps={train.max_steps} the run ends before the "
            "learning rate reaches its peak"
        )
    if train.learning_rate > 0.1:
        yield f"train.learning_rate={train.learning_rate}: for LoRA, 1e-5 to 1e-3 is usual"


def _describe(key: str) -> str:
    section, _, name = key.rpartition(".")
    return (_SECTIONS[section].model_fields[name].description or "").rstrip(".")


def _holds_secret(entry: Entry) -> bool:
    named = bool(_SECRET_KEY.search(entry.key)) and isinstance(entry.value, str)
    return named or bool(_SECRET.search(str(entry.value)))


def _show(value: Any) -> str:
    """A value as error messages quote it: on one line, and shortened."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


def _nearest(word: str, known: list[str]) -> str:
    """`; did you mean ...?`, or nothing if no known word is similar."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or difflib.get_close_matches(
        word.rpartition(".")[2], known, n=1, cutoff=0.6
    )
    if not close:
        return ""
    target = ALIASES.get(close[0], f"{_HOME[close[0]]}.{close[0]}" if close[0] in _HOME else close[0])
    return f"; did you mean {target}?"
