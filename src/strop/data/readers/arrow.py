"""Parquet and Arrow files, and the folders that `save_to_disk` of datasets writes; all of it with pyarrow."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.data.examples import Origin
from strop.data.readers.kinds import refuse_other_content
from strop.data.readers.rows import RawRow, refuse_part
from strop.data.readers.text import Note
from strop.errors import DataError
from strop.terminal import one_line

_ROWS_AT_A_TIME = 1024
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_arrow(path: Path, part: str | None, note: Note) -> Iterator[RawRow]:
    """Rows of a Parquet file, an Arrow file or an Arrow stream; their lines are their numbers.

    Raises:
        DataError: It is damaged, cut short or of another type, names a column twice, or pyarrow is missing.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'strop[parquet]'") from error
    refuse_part(path, part)
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        row = 0
        for batch in _parquet_batches(path) if kind == "Parquet" else _arrow_batches(path):
            for values in _as_python(path, batch, note):
                row += 1
                yield Origin(str(path), row), values
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged or not {kind}: {one_line(error)}") from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    _refuse_other(path, b"PAR1")
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS_AT_A_TIME)


def _arrow_batches(path: Path) -> Iterator[Any]:
    import pyarrow

    is_file = _refuse_other(path, b"ARROW1")
    with pyarrow.memory_map(str(path)) as source:
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            _refuse_endless(path)
            batches = pyarrow.ipc.open_stream(source)
        for batch in batches:
            batch.validate(full=True)  # pyarrow follows a damaged offset out of the file's memory: a segmentation fault
            for start in range(0, batch.num_rows, _ROWS_AT_A_TIME):
                yield batch.slice(start, _ROWS_AT_A_TIME)


def _refuse_other(path: Path, mark: bytes) -> bool:
    """Whether a file begins with its mark; what begins with another's is refused."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(mark):
        refuse_other_content(path, head)
    return head.startswith(mark)


def _refuse_endless(path: Path) -> None:
    """Refuse a stream that was cut between two batches, which is a whole one to pyarrow."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(_END_OF_STREAM), 0))
        end = file.read()
    if end != _END_OF_STREAM:
        raise DataError(f"{path} is cut short or not Arrow: the stream has no end; write it again")


def _as_python(path: Path, batch: Any, note: Note) -> list[dict[str, Any]]:
    """A batch as rows: maps as dicts, structs without nulls, and NaN, pandas' missing value, as None."""
    import pyarrow
    import pyarrow.compute

    names = batch.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} names the column {', '.join(map(repr, twice))} more than once")
    for index, field in enumerate(batch.schema):
        if pyarrow.types.is_floating(field.type):
            column = batch.column(index)
            is_nan = pyarrow.compute.is_nan(column)
            if pyarrow.compute.any(is_nan).as_py():
                note("NaN read as null")
                batch = batch.set_column(index, field, pyarrow.compute.if_else(is_nan, None, column))
    has_maps = any("map<" in str(kind) for kind in batch.schema.types)  # dicts take longer to make, so only for these
    rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict" if has_maps else None)
    structs = [field.name for field in batch.schema if "struct<" in str(field.type)]
    for row in rows:
        for name in structs:
            row[name] = _without_nulls(row[name])
    return rows


def _without_nulls(value: Any) -> Any:
    """A value without the fields that Arrow had to add, because all structs of a column have the same."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def saved_dataset_files(folder: Path, part: str | None) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in order, or None if it is no such folder.

    Args:
        folder: Of one data set, or of several splits.
        part: The split; the default is `train`, or the only one.

    Raises:
        DataError: There is no such split, or the folder is not whole.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json").get("splits", [])
        chosen = part or (splits[0] if len(splits) == 1 else "train")
        if chosen not in splits:
            raise DataError(f"{folder} has no split {chosen!r}: it has {', '.join(map(repr, splits)) or 'none'}")
        return _files_of_split(folder / chosen)
    if not (folder / "state.json").is_file():
        return None
    split = _read(folder / "state.json").get("_split")
    if part not in (None, split or "train"):
        raise DataError(f"{folder} has no split {part!r}: it is one data set" + (f", {split!r}" if split else ""))
    return _files_of_split(folder)


def _files_of_split(folder: Path) -> list[Path]:
    state = _read(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} keeps the order of its rows apart: save it again with datasets 2 or later")
    try:
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}/state.json does not name the files of the data set; save it again") from error
    if missing := [path.name for path in files if not path.is_file()]:
        raise DataError(f"{folder} is not whole: {', '.join(missing)} is missing; save it again or copy all of it")
    return files


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not what save_to_disk of datasets writes; save it again")
    return content
