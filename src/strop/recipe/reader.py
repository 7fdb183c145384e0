"""Reads recipe files and overrides into a `Recipe`, or raises one error that lists every fault with its line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from strop.errors import RecipeError
from strop.recipe.aliases import ALIASES, TRANSLATED, translate_value
from strop.recipe.data_files import read_data_files
from strop.recipe.implied import settle
from strop.recipe.recipe import Recipe
from strop.recipe.rules import contradictions
from strop.recipe.schema import (
    DataSection,
    LoraSection,
    ModalSection,
    ModelSection,
    Section,
    TrainSection,
)
from strop.recipe.shipped import find_recipe, is_run_folder
from strop.recipe.understood import UNDERSTOOD
from strop.recipe.wording import closest, nearest, show
from strop.recipe.yaml_lines import UNREADABLE, Entry, entries_of_file, parse_value, readable_text
from strop.secrets import kind_of, secrets_in, values_under_secret_names, without_secrets

_SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "lora": LoraSection,
    "data": DataSection,
    "train": TrainSection,
    "modal": ModalSection,
}
_LISTS = ("data.train_file", "data.validation_file")
_HOME = {key: section for section, schema in _SECTIONS.items() for key in schema.model_fields}


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a shipped recipe, with some keys replaced.

    Args:
        name_or_path: A YAML file, a name from `list_recipes`, or a run folder, which stays the output_dir wherever it
            has been moved to.
        overrides: `key=value` strings, or a mapping, nested or with dotted keys.

    Raises:
        RecipeError: The recipe has errors; the message lists all of them.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    _refuse_types(name_or_path, overrides)
    secrets = _secrets_of(overrides)
    try:
        path = find_recipe(str(name_or_path))
        secrets |= secrets_in(readable_text(path))
        reader = _Reader(str(path))
        reader.place(entries_of_file(path, _SECTIONS, reader.faults), "of the file")
        if is_run_folder(name_or_path):
            moved = Entry("train.output_dir", str(name_or_path), "run folder")
            reader.place(iter([moved]), "of the run folder", replacing=True)
        reader.place(_entries_of_overrides(overrides, reader.faults), "on the command line", replacing=True)
        return reader.finish(path.stem)
    except RecipeError as error:  # the message may quote a token, and messages end up in logs
        raise RecipeError(without_secrets(str(error), secrets)) from None


def _secrets_of(overrides: Mapping[str, Any] | Sequence[str]) -> set[str]:
    """What overrides give as secrets by the names of their keys."""
    if isinstance(overrides, Mapping):
        return {*values_under_secret_names("", overrides), *secrets_in(str(overrides))}
    pairs = [text.partition("=") for text in overrides]
    named = {found for key, _, value in pairs for found in values_under_secret_names(key.strip(), value)}
    return named.union(*map(secrets_in, overrides))


def _refuse_types(name_or_path: object, overrides: object) -> None:
    if not isinstance(name_or_path, str | Path):
        raise RecipeError(f"name_or_path: a {type(name_or_path).__name__} is not the name or path of a recipe")
    is_list = isinstance(overrides, Sequence) and all(isinstance(text, str) for text in overrides)
    if not isinstance(overrides, Mapping) and not is_list:
        raise RecipeError(f"overrides: {show(overrides)} is neither a mapping nor a list of `key=value`")


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
            faults.append(f"{show(text)} is not an override; write key=value, such as train.max_steps=60")
            continue
        try:
            yield Entry(key.strip(), parse_value(value, "override", faults), "override")
        except (yaml.YAMLError, ValueError, RecursionError):
            faults.append(f"override: {show(text)}: the value is not valid YAML; quote it")


class _Reader:
    """Collects keys into sections, together with every error in them."""

    def __init__(self, source: str) -> None:
        self.faults: list[str] = []
        self.notes: list[str] = []
        self._source = source
        self._values: dict[str, Entry] = {}
        self._faulty: set[str] = set()
        self._names: set[str] = set()
        self._blank: list[str] = []

    def place(self, entries: Iterator[Entry], source: str, replacing: bool = False) -> None:
        """Add every entry under the key it means; two entries of one source for the same key must agree."""
        seen: dict[str, Entry] = {}
        for entry in entries:
            if not replacing:
                self._names.add(entry.key)
            if self._is_blank(entry, replacing):
                continue
            for target, value in self._resolve(entry, report_place=not replacing).items():
                other = seen.setdefault(target, entry)
                if other is not entry and self._values[target].value != value:
                    self.faults.append(
                        f"{entry.where}: {entry.key}={show(entry.value)} contradicts "
                        f"{other.key}={show(other.value)} {source}; both mean {target}"
                    )
                    continue
                self._values[target] = replace(entry, value=value)

    def _is_blank(self, entry: Entry, replacing: bool) -> bool:
        """Whether a key has no value, which means that it is not set."""
        if entry.value is not None or entry.key == "adapter":  # Axolotl's blank adapter means full fine-tuning
            return False
        target = _target(entry.key)
        if replacing and target:
            self._values.pop(target, None)
        if entry.key != target or not _may_be_null(target):
            self._blank.append(entry.key)
        return True

    def _resolve(self, entry: Entry, report_place: bool) -> dict[str, Any]:
        """The keys that an entry means and their values; empty for one that changes nothing or is an error."""
        section, _, key = entry.key.rpartition(".")
        target = _target(entry.key)
        if entry.value is UNREADABLE:
            self._faulty.add(target or entry.key)
            return {}
        if secret := kind_of(entry.key, entry.value):
            self._faulty.add(target or entry.key)
            return self._fault(
                f"{entry.where}: {entry.key} looks like {secret}, but recipes are copied to run folders and reports; "
                "put it in the environment, as HF_TOKEN is, or in a Modal secret, and make a new one if others saw this"
            )
        is_known = target or key in TRANSLATED or key in UNDERSTOOD
        if section not in _SECTIONS and (section or (isinstance(entry.value, dict) and not is_known)):
            name = section or key
            near = nearest(name, list(_SECTIONS)) or f"; the sections are {', '.join(_SECTIONS)}"
            return self._fault(f"{entry.where}: unknown section {show(name)}{near}")
        if entry.key in _SECTIONS and target is None:
            example = f"{key}.{next(iter(_SECTIONS[key].model_fields))}"
            return self._fault(
                f"{entry.where}: {key}={show(entry.value)}: {key} is a section with keys such as {example}"
            )
        if key in TRANSLATED or key in UNDERSTOOD:
            return self._translate(entry, key)
        if target is None:
            written = entry.key if entry.key.isprintable() else show(entry.key)
            return self._fault(f"{entry.where}: unknown key {written}={show(entry.value)}{_meant(entry.key)}")
        return self._read_as(entry, target, report_place or key not in _HOME or bool(section))

    def _read_as(self, entry: Entry, target: str, report: bool) -> dict[str, Any]:
        if target in _LISTS:
            return self._read_files(entry, target, entry.value)
        try:
            values = translate_value(target, entry.value)
        except ValueError as error:
            self._faulty.add(target)
            return self._fault(f"{entry.where}: {entry.key}={show(entry.value)}: {error}")
        if values != {target: entry.value}:
            read = [f"{key}={show(value)}" for key, value in values.items() if not key.startswith("each.")]
            self.notes.append(f"{entry.key}={show(entry.value)}: {_read_as(read)}")
        elif report and entry.key != target:
            self.notes.append(f"{entry.key}: read as {target}")
        return values

    def _read_files(self, entry: Entry, target: str, value: Any) -> dict[str, Any]:
        """The files of a list, with what their keys say about the rest of the recipe."""
        found = read_data_files(entry.key, target, value, entry.where)
        if found.faults:
            self._faulty.add(target)
            self.faults += found.faults
            return {}
        self.notes += [f"{entry.key}: read as {target}"] if entry.key != target else []
        self.notes += dict.fromkeys(found.notes)
        kinds = "each.kinds" if target == _LISTS[0] else "each.held_out_kinds"
        return {target: found.files, **found.keys} | ({kinds: sorted(found.kinds)} if found.kinds else {})

    def _translate(self, entry: Entry, key: str) -> dict[str, Any]:
        written = f"{entry.key}={show(entry.value)}"
        if key in UNDERSTOOD:
            agreeing, reason = UNDERSTOOD[key]
            if entry.value in agreeing:
                self.notes.append(f"{written}: changes nothing; {reason}")
                return {}
            if key not in TRANSLATED:
                return self._fault(f"{entry.where}: {written} is not supported; {reason}")
        try:
            values = TRANSLATED[key](entry.value)
        except TypeError:
            return self._fault(f"{entry.where}: {written} is not a number")
        except ValueError as error:
            return self._fault(f"{entry.where}: {written}: {error}")
        hidden = ("each.", _LISTS[0])  # what these lead to has notes of its own
        read = [f"{target}={show(value)}" for target, value in values.items() if not target.startswith(hidden)]
        self.notes += [f"{written}: {_read_as(read)}"] if read or not values else []
        files = values.pop(_LISTS[0], None)
        return values if files is None else self._read_files(entry, _LISTS[0], files) | values

    def _fault(self, text: str) -> dict[str, Any]:
        self.faults.append(text)
        return {}

    def finish(self, stem: str) -> Recipe:
        """Build the recipe, or raise all errors together."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "recipe"
        self.notes += settle(self._values, self._names, self.faults)
        self.notes += [f"blank, so not set: {', '.join(dict.fromkeys(self._blank))}"] if self._blank else []
        values: dict[str, Any] = {"name": name, "model": {}, "data": {}}
        for target, entry in self._values.items():
            section, _, key = target.rpartition(".")
            (values.setdefault(section, {}) if section else values)[key] = entry.value
        try:
            recipe = Recipe(**values)
            recipe = recipe.model_copy(update={"notes": (*self.notes, *self._remarks(recipe))})
        except ValidationError as error:
            self._explain(error)
            self._explain_contradictions(values)
            recipe = None
        if self.faults or recipe is None:
            raise RecipeError("\n".join(self.faults))
        return recipe

    def _remarks(self, recipe: Recipe) -> Iterator[str]:
        """Which file was read, and values that are allowed but probably not intended."""
        entry, train = self._values.get("data.chat_template"), recipe.train
        if entry is not None and entry.value != recipe.data.chat_template:
            yield f"data.chat_template: read from {entry.value}"
        if 0 < train.max_steps <= train.warmup_steps:
            yield (
                f"train.warmup_steps={train.warmup_steps}: with train.max_steps={train.max_steps} the run ends before "
                "the learning rate reaches its peak"
            )
        if train.learning_rate > 0.1:
            yield f"train.learning_rate={train.learning_rate}: for LoRA, 1e-5 to 1e-3 is usual"

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
                near = nearest(str(entry.value), re.findall("'([^']+)'", fault["ctx"]["expected"]))
            self.faults.append(f"{entry.where}: {key}={show(entry.value)}: {message}{near}")

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


def _may_be_null(target: str) -> bool:
    """Whether null is a value of a key."""
    section, _, key = target.rpartition(".")
    field = _SECTIONS[section].model_fields.get(key) if section else None
    return field is not None and not field.is_required() and field.default is None


def _read_as(keys: Sequence[str]) -> str:
    return f"read as {', '.join(keys)}" if keys else "changes nothing"


def _describe(key: str) -> str:
    section, _, name = key.rpartition(".")
    return (_SECTIONS[section].model_fields[name].description or "").rstrip(".")


def _meant(word: str) -> str:
    """`; did you mean ...?` with strop's key for a known name that is similar, or nothing."""
    close = closest(word, [*(f"{home}.{name}" for name, home in _HOME.items()), *_HOME, *ALIASES, *TRANSLATED])
    if close is None:
        return ""
    target = ALIASES.get(close, f"{_HOME[close]}.{close}" if close in _HOME else close)
    return f"; did you mean {target}?"
