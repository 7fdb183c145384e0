"""Writes docs/recipe.md from the schema, so that it cannot go stale: python docs/make_recipe_reference.py."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strop.gpus import GPUS
from strop.recipe import DataFile, DataSection, LoraSection, ModalSection, ModelSection, Section, TrainSection
from strop.recipe.aliases import ALIASES, TRANSLATED
from strop.recipe.data_files import ENTRY_KEYS
from strop.recipe.understood import ANYTHING, UNDERSTOOD

PAGE = Path(__file__).with_name("recipe.md")
SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "lora": LoraSection,
    "data": DataSection,
    "train": TrainSection,
    "modal": ModalSection,
}
INTRODUCTION = """# The recipe: every key

Made from the code by `python docs/make_recipe_reference.py`.

A recipe is YAML with these sections. On the command line a key is `section.key=value` or, where the name is unique,
`key=value`. Relative paths are relative to the current folder. A key that is not known, a value that is not allowed and
keys that contradict each other are errors (exit code 2), all of a file at once. A key without a value is not set.
"""
FILES = """
### Entries of train_file and validation_file

```yaml
data:
  train_file:
    - support.jsonl                                # a name
    - {path: org/rows, split: "train[:5000]"}      # or a mapping
    - {path: "manuals/*.jsonl", columns: {text: body}, repeat: 2}
```

| key | default | meaning |
|---|---|---|
"""


def default_of(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value in (None, []) else f"`{value}`"


def table(schema: type[Section]) -> str:
    rows = []
    for key, field in schema.model_fields.items():
        rows.append(f"| `{key}` | {default_of(field)} | {' '.join((field.description or '').split())} |\n")
    return "".join(rows)


def names(keys: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(keys))


def render() -> str:
    parts = [INTRODUCTION]
    for name, schema in SECTIONS.items():
        parts.append(f"\n## {name}\n\n{schema.__doc__}\n\n| key | default | meaning |\n|---|---|---|\n{table(schema)}")
        parts += [FILES, table(DataFile)] if schema is DataSection else []
    parts.append(f"\nModal's GPU types: {', '.join(f'`{name}`' for name in GPUS)}.\n")
    parts.append(
        "\n## Other tools' names\n\nThe names of Axolotl, TRL, LLaMA-Factory and Unsloth are read as the keys above, "
        "and reported.\nSo are these keys at the top level of a file, without a section.\n\n"
        "| name | read as |\n|---|---|\n"
    )
    parts += [f"| `{alias}` | `{target}` |\n" for alias, target in sorted(ALIASES.items())]
    unused = [key for key, (values, _) in UNDERSTOOD.items() if values is ANYTHING]
    parts.append(f"\nTranslated with their value: {names(TRANSLATED)}.\n")
    parts.append(f"\nOf an entry of `datasets` or `test_datasets`: {names(ENTRY_KEYS)}.\n")
    parts.append(
        "\nUnderstood where they agree with what strop does anyway, and refused where they do not: "
        f"{names(UNDERSTOOD.keys() - unused)}.\n"
    )
    parts.append(f"\nNot used, because they change no result: {names(unused)}.\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
