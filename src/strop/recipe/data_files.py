"""The entries of data.train_file and data.validation_file: strop's keys, and those of other tools' data sets.

Axolotl's `datasets`, TRL's `dataset_mixture` and LLaMA-Factory's comma-separated `dataset` end here. Each of their keys
is read as one of strop's, agrees with what strop does anyway, or is a fault.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from strop.recipe.schema import PARTS, DataFile
from strop.recipe.wording import nearest, show
from strop.resolve import DATA_SUFFIXES, is_hub_id

_RENAMED = {"name": "subset"}
_COLUMNS = {
    "field_messages": "messages",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field": "text",
    "text_column": "text",
}
"""Axolotl's name for a column -> the part of a row that it has."""

_LOADERS = ("json", "csv", "parquet", "arrow", "text")
"""Paths that mean: the files are in `data_files`."""

_FORMATS: dict[str, str] = {"alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": "auto", "completion": "text"}
_NO_FORMAT = {
    "input_output": "rows of segments that are learned or not; write them as token ids (input_ids and labels)",
    "pretrain": "write type: completion",
}
_ROLES = {
    "user": {"user", "human"},
    "assistant": {"assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"},
    "system": {"system", "developer"},
    "tool": {"tool", "function", "observation", "tool_response", "ipython"},
}
_TURN_KEYS = {
    "role": ("role", "from"),
    "content": ("content", "value"),
    "reasoning_content": ("reasoning_content", "reasoning", "thinking"),
    "tool_calls": ("tool_calls",),
    "name": ("name",),
    "tool_call_id": ("tool_call_id",),
}
"""What a turn's keys are called here: the first list has Axolotl's name for the property."""

_AGREEING: dict[str, tuple[tuple[Any, ...], str]] = {
    "roles_to_train": (
        (["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"]),
        "strop learns the assistant's turns; data.train_on=all learns everything",
    ),
    "train_on_eos": (("turn",), "strop learns the stop token of every answer that is learned"),
    "message_field_role": (_TURN_KEYS["role"], "strop finds a turn's role under role or from"),
    "message_field_content": (_TURN_KEYS["content"], "strop finds a turn's text under content or value"),
    "message_field_training": (
        ("train", "training", "trainable", "learn"),
        "strop reads a turn's train, training, trainable and learn",
    ),
    "field_tools": (("tools",), "strop finds a row's tools under tools"),
    "field_thinking": (_TURN_KEYS["reasoning_content"], "strop finds a turn's reasoning under reasoning_content"),
    "template_thinking_key": (
        ("reasoning_content", "thinking"),
        "strop gives reasoning to chat templates under both names that are in use",
    ),
    "drop_system_message": ((False,), "strop learns rows as they are; remove the system turns from them"),
    "split_thinking": ((False,), "strop gives the content of turns to the chat template as it is"),
    "chat_template": (("tokenizer_default", "jinja"), "strop renders all rows with one template: data.chat_template"),
    "streaming": ((True, False), "strop reads rows as it needs them"),
    "trust_remote_code": ((True, False), "strop runs no code of a data set"),
    "shards": ((1,), "that takes some of the rows; write split: train[:25%], or max_samples"),
    "shards_idx": ((), "that takes some of the rows; write split: train[25%:50%]"),
    "revision": (("main",), "strop reads a data set's main branch"),
    "conversation": ((), "strop renders rows with the model's chat template, or with data.chat_template"),
    "input_format": ((), "strop renders rows with the model's chat template, or with data.chat_template"),
    "input_transform": ((), "strop runs no code of yours on rows"),
    "message_field_training_detail": ((), "parts of a turn cannot be learned by themselves; mark whole turns"),
    "data_dir": ((), "name the files in path"),
}
"""Another tool's key -> the values that agree with what strop does anyway, and why others do not."""

_OWN_PROMPT = ("format", "no_input_format", "system_format", "system_prompt")


@dataclass
class Found:
    """What a list of files was read as.

    Attributes:
        files: Its entries.
        kinds: Axolotl's types among them.
        keys: Other keys of the recipe that they set.
        notes: How other tools' keys were read.
        faults: Each with its place.
    """

    files: list[str | DataFile] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    keys: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_data_files(key: str, target: str, value: Any, where: str) -> Found:
    """The entries of a recipe's list of files, or a single one.

    Args:
        key: As it was written.
        target: The key that it means.
        value: Names, and mappings with keys of strop or of another tool.
        where: The place of the key; mappings may know the places of their own.
    """
    found = Found()
    if isinstance(value, str) and key in ("dataset", "eval_dataset"):
        value = [name.strip() for name in value.split(",")]
        found.notes += [
            f"{key}: {name} is taken for a path: LLaMA-Factory's dataset_info.json is not read, so name the file itself"
            for name in value
            if re.fullmatch(r"\w+", name) and not Path(name).exists()
        ]
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str | DataFile):
            found.files.append(item)
        elif isinstance(item, dict):
            _Entry(key, target, item, where, found).add()
        else:
            found.faults.append(f"{where}: {target}={show(value)}: name a file, or write a mapping with path")
    return found


class _Entry:
    """One mapping, whose keys are read one after the other."""

    def __init__(self, list_key: str, target: str, item: Mapping[str, Any], where: str, found: Found) -> None:
        self._list_key = list_key
        self._is_ours = list_key in (target, target.partition(".")[2])
        self._item = {key: value for key, value in item.items() if value is not None}
        self._places: Mapping[str, str] = getattr(item, "places", {})
        self._where = next(iter(self._places.values()), where)
        self._found = found
        self._keys: dict[str, Any] = {}
        self._columns: dict[str, str] = {}

    def add(self) -> None:
        """Add its files, or its faults."""
        before = len(self._found.faults)
        for key, value in self._item.items():
            try:
                self._read(str(key), value)
            except ValueError as error:
                self._fault(str(key), str(error))
        if len(self._found.faults) > before:
            return
        if self._columns:
            self._keys |= {"columns": self._columns, "format": "auto"}
        try:
            self._found.files += [DataFile(**self._keys, path=path) for path in self._paths()]
        except ValidationError as error:
            for details in error.errors():
                key = str(details["loc"][0]) if details["loc"] else "path"
                self._fault(key, details["msg"].removeprefix("Value error, "))
        except ValueError as error:
            self._fault("path", str(error))

    def _read(self, key: str, value: Any) -> None:
        if key == "columns" and isinstance(value, list):
            self._columns |= _selected(value)
        elif key == "split" and not isinstance(value, str):
            raise ValueError('put it in quotes, such as split: "[:1000]"')  # YAML takes [10%:20%] for a list
        elif key in DataFile.model_fields:
            self._keys[key] = value
        elif key in _RENAMED:
            self._keys[_RENAMED[key]] = value
        elif key in _COLUMNS:
            self._columns[_COLUMNS[key]] = value
        elif key in _READ:
            _READ[key](self, value)
        elif key in _AGREEING:
            self._agree(key, value)
        else:
            near = (
                nearest(key, [*DataFile.model_fields, *ENTRY_KEYS])
                or f"; the keys are {', '.join(DataFile.model_fields)}"
            )
            raise ValueError(f"unknown key{near}")

    def _agree(self, key: str, value: Any) -> None:
        agreeing, reason = _AGREEING[key]
        if value not in agreeing:
            raise ValueError(f"is not supported; {reason}")
        if key == "chat_template" and value == "jinja":
            return
        self._found.notes.append(f"{self._list_key}: {key}={show(value)} changes nothing; {reason}")

    def _type(self, value: Any) -> None:
        if isinstance(value, dict):
            self._prompt_of_its_own(value)
            return
        if not isinstance(value, str) or value not in _FORMATS:
            reason = _NO_FORMAT.get(str(value), f"known types are {', '.join(_FORMATS)}")
            raise ValueError(f"is not supported: {reason}")
        self._found.kinds.add(value)
        self._keys["format"] = _FORMATS[value]
        if value == "chat_template" and "field_messages" in self._item:
            self._columns.setdefault("system", "system")  # Axolotl's default for field_system

    def _prompt_of_its_own(self, value: Mapping[str, Any]) -> None:
        """Axolotl's mapping as a type: which column is which, and a prompt to put them in."""
        for key, inner in value.items():
            if key in _COLUMNS and inner is not None:
                self._columns[_COLUMNS[key]] = inner
            elif inner not in (None, ""):
                reason = f"known keys are {', '.join(_COLUMNS)}"
                if key in _OWN_PROMPT:
                    reason = (
                        "a prompt of your own is a chat template: write it in Jinja and name it in data.chat_template"
                    )
                raise ValueError(f"{key}={show(inner)} is not supported: {reason}")

    def _turn_keys(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("must map the properties of a turn to its keys")
        for name, key in value.items():
            if key not in _TURN_KEYS.get(str(name), ()):
                known = ", ".join(" or ".join(keys) for keys in _TURN_KEYS.values())
                raise ValueError(f"{name}: {show(key)} is not supported: rename the turns' keys; strop reads {known}")

    def _roles(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("must map roles to lists of names")
        for role, names in value.items():
            unknown = sorted(
                set(map(str, names if isinstance(names, list) else [names])) - _ROLES.get(str(role), set())
            )
            if unknown:
                reads = ", ".join(sorted(_ROLES.get(str(role), set()))) or f"no role {role}"
                raise ValueError(f"{role}: {', '.join(unknown)} is not supported: rename it; strop reads {reads}")

    def _chat_template(self, value: Any) -> None:
        self._found.keys["data.chat_template"] = value

    def _overlap(self, value: Any) -> None:
        self._found.keys["data.long_overlap"] = value

    def _accept(self, value: Any) -> None:
        """What `_paths` reads, or what changes no row."""

    def _paths(self) -> list[str]:
        """The path, or the files that are named beside it."""
        path, files = self._keys.pop("path", None), self._item.get("data_files")
        if not isinstance(path, str):
            raise ValueError("every entry needs a path")
        if "split" in self._keys and not self._is_ours:
            self._keys["split"] = without_train(self._keys["split"])
        kind = self._item.get("ds_type")
        suffix = Path(path).suffix.lower()
        if kind not in (None, *_LOADERS) or kind == "text" or (kind and suffix == ".parquet" and kind != "parquet"):
            raise ValueError(
                f"ds_type={kind} does not fit; the ending of a file says what is in it: {', '.join(DATA_SUFFIXES)}"
            )
        if files is None:
            return [path]
        names = [files] if isinstance(files, str) else files
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"data_files={show(files)}: must be a file or a list of files")
        if len(names) > 1 and self._keys.keys() & {"split", "max_samples", "repeat", "weight"}:
            raise ValueError(
                "data_files: several files with one split, max_samples, repeat or weight; write one entry for each"
            )
        if path in _LOADERS:
            return names
        if is_hub_id(path) and not Path(path).exists():
            raise ValueError("data_files of a hub id is not supported; name its split, or download the files")
        return [str(Path(path) / name) for name in names]

    def _fault(self, key: str, text: str) -> None:
        where = self._places.get(key, self._where)
        value = f"={show(self._item[key])}" if key in self._item else ""
        self._found.faults.append(f"{where}: {self._list_key}: {key}{value}: {text}")


_READ: dict[str, Callable[[_Entry, Any], None]] = {
    "type": _Entry._type,
    "message_property_mappings": _Entry._turn_keys,
    "roles": _Entry._roles,
    "chat_template_jinja": _Entry._chat_template,
    "overlap_len": _Entry._overlap,
    "data_files": _Entry._accept,
    "ds_type": _Entry._accept,
    "preprocess_shards": _Entry._accept,
}


ENTRY_KEYS = (*_RENAMED, *_COLUMNS, *_READ, *_AGREEING)
"""Other tools' keys of an entry."""


def without_train(split: Any) -> Any:
    """A split as other tools name it: to them, files without splits are `train`."""
    return re.sub(r"^train(?=\[|$)", "", split) or None if isinstance(split, str) else split


def _selected(names: list[Any]) -> dict[str, str]:
    """TRL's list of the columns to keep, if these are parts by their own names."""
    if unknown := [str(name) for name in names if name not in PARTS]:
        raise ValueError(f"{', '.join(unknown)}: write which column is which, such as {{prompt: {unknown[0]}, ...}}")
    return {name: name for name in names}
