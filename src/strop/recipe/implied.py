"""What another tool's file means as a whole: its defaults, and keys that concern every data set."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from strop.recipe.schema import DataFile
from strop.recipe.yaml_lines import Entry
from strop.resolve import is_hub_id

Values = dict[str, Entry]
_LISTS = ("data.train_file", "data.validation_file")


def settle(values: Values, names: Collection[str], faults: list[str]) -> Iterator[str]:
    """Replace `each.KEY` by what it means for the other keys, and set the defaults of the tool whose names these are.

    Args:
        values: Each key of the recipe and its value; changed here.
        names: Of keys, as the file has them.
        faults: What contradicts itself is appended here.

    Yields:
        What was set, for people.
    """
    each = {key.partition(".")[2]: values.pop(key) for key in list(values) if key.startswith("each.")}
    kinds = set(each["kinds"].value) if "kinds" in each else set()
    held_out_kinds = set(each["held_out_kinds"].value) if "held_out_kinds" in each else set()
    if "jinja" in each and "data.chat_template" not in values:
        faults.append(f"{each['jinja'].where}: chat_template=jinja needs chat_template_jinja")
    yield from _rank(values, names)
    yield from _lengths(values, names, kinds)
    yield from _template(values, kinds | held_out_kinds)
    yield from _learned(values, names)
    yield from _each(values, each)
    yield from _weights(values, each, faults)
    if kinds:
        _one_format(values)
    _plain(values)


def _rank(values: Values, names: Collection[str]) -> Iterator[str]:
    rank = values["lora.r"].value if "lora_rank" in names and "lora.r" in values else None
    if isinstance(rank, int) and "lora.lora_alpha" not in values:
        values["lora.lora_alpha"] = replace(values["lora.r"], key="lora.lora_alpha", value=2 * rank)
        yield f"lora.lora_alpha={2 * rank}: twice lora_rank, LLaMA-Factory's default"


def _lengths(values: Values, names: Collection[str], kinds: set[str]) -> Iterator[str]:
    said = values.get("data.long_samples")
    if kinds == {"completion"} and said and said.key == "excess_length_strategy":
        said = None  # Axolotl splits these rows, so none is ever too long
    if said is not None:
        return
    if "completion" in kinds:
        yield _set(values, "data.long_samples", "split", "Axolotl splits documents over sequence_len")
    elif "sequence_len" in names:
        why = "Axolotl drops rows over sequence_len; data.long_samples=cut keeps what fits"
        yield _set(values, "data.long_samples", "drop", why)
    elif "cutoff_len" in names:
        yield "cutoff_len: longer samples are cut at their end; LLaMA-Factory would shorten their questions too"


def _template(values: Values, kinds: set[str]) -> Iterator[str]:
    if "alpaca" not in kinds or "data.template" in values:
        return
    if kinds == {"alpaca"} and not values.keys() & {"data.chat_template", "data.system"}:
        why = "Axolotl's prompt for type alpaca; data.template=chat uses the model's chat template"
        yield _set(values, "data.template", "alpaca", why)
    else:
        yield "type alpaca: rendered with the chat template, as the other rows; Axolotl would use its alpaca prompt"


def _learned(values: Values, names: Collection[str]) -> Iterator[str]:
    if "dataset_name" in names and "data.train_on" not in values:
        yield (
            "dataset_name: strop learns the answers; TRL learns whole conversations without assistant_only_loss, "
            "as data.train_on=all does"
        )


def _each(values: Values, each: Values) -> Iterator[str]:
    for key in ("split", "subset", "max_samples"):
        if key not in each:
            continue
        value = each[key].value
        lists = _LISTS if key == "max_samples" else _LISTS[:1]
        _change(values, lists, lambda file, key=key, value=value: _with(file, key, value))  # type: ignore[misc]
        yield f"{each[key].key}={value}: read as {key} of every entry of {' and '.join(lists)}"


def _weights(values: Values, each: Values, faults: list[str]) -> Iterator[str]:
    if "shares" in each and "weights" not in each:
        faults.append(f"{each['shares'].where}: interleave_probs needs mix_strategy=interleave_over")
    if "weights" not in each or _LISTS[0] not in values:
        return
    files = values[_LISTS[0]].value
    shares = each["shares"].value if "shares" in each else [1.0] * len(files)
    if len(shares) != len(files):
        faults.append(f"{each['shares'].where}: interleave_probs has {len(shares)} values for {len(files)} data sets")
        return
    weighted = iter(shares)
    _change(values, _LISTS[:1], lambda file: _with(file, "weight", next(weighted)))
    yield f"mix_strategy=interleave_over: read as the weights {', '.join(f'{share:g}' for share in shares)}"


def _one_format(values: Values) -> None:
    """Name a format that all files have once for all of them."""
    files = [file for key in _LISTS if key in values for file in values[key].value]
    formats = {file.format if isinstance(file, DataFile) and not file.columns else "auto" for file in files}
    if len(formats) == 1 and formats != {"auto"} and not values.keys() & {"data.format", "data.columns"}:
        _set(values, "data.format", formats.pop(), "")
        _change(
            values,
            _LISTS,
            lambda file: file.model_copy(update={"format": "auto"}) if isinstance(file, DataFile) else file,
        )


def _plain(values: Values) -> None:
    """Write an entry that has no more than a path, or a split on the hub, as a name."""

    def name(file: str | DataFile) -> str | DataFile:
        if isinstance(file, str):
            return file
        keys = set(file.model_dump())
        if keys == {"path", "split"} and is_hub_id(file.path) and "[" not in str(file.split):
            return f"{file.path}:{file.split}"
        return file.path if keys == {"path"} else file

    _change(values, _LISTS, name)


def _change(values: Values, keys: Collection[str], change: Callable[[str | DataFile], str | DataFile]) -> None:
    for key in keys:
        if key in values:
            values[key] = replace(values[key], value=[change(file) for file in values[key].value])


def _with(file: str | DataFile, key: str, value: Any) -> DataFile:
    """An entry with one key more, unless it has that already."""
    keys = {"path": file} if isinstance(file, str) else file.model_dump()
    return DataFile(**{key: value} | keys)


def _set(values: Values, key: str, value: Any, why: str) -> str:
    values[key] = Entry(key, value, values[_LISTS[0]].where if _LISTS[0] in values else "")
    return f"{key}={value}: {why}"
