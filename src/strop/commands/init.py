"""`strop init`: a first recipe for someone's rows, which are all read once to see what it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from strop.commands.console import Printing, out
from strop.data.examples import Fault
from strop.data.files import find
from strop.data.readers import read_rows
from strop.data.sources import Source, open_sources
from strop.errors import DataError, RecipeError, shown_name
from strop.readable import counted
from strop.recipe import DataSection, TrainSection
from strop.recipe.shipped import starter_recipe, yaml_scalar
from strop.run.durable import replace_file
from strop.run.reporter import Reporter

if TYPE_CHECKING:
    from strop.data.survey import Survey

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base model if the user names none: small enough for any machine."""
_FAULTS_SHOWN = 5
_ENOUGH_ROWS = 100
"""Of so many rows 5% are not none, whichever they are: which row is held out depends on how it is read."""


def init(
    data: str | Sequence[str], path: Path, *, model: str = DEFAULT_MODEL, reporter: Reporter | None = None
) -> list[str]:
    """Write a starter recipe for someone's rows.

    Args:
        data: Files, globs or hub ids.
        path: The recipe's file.
        model: The base model: a folder, a .gguf file or a hub id.
        reporter: Told how far the reading has come.

    Returns:
        What was found in the rows, and what has to be changed before the recipe trains, a line each. The recipe says so
        too.

    Raises:
        RecipeError: The file exists already.
        StorageError: It cannot be written.
        DataError: The rows cannot be found or read, or none can be used whatever the recipe says.
    """
    if path.exists():
        raise RecipeError(f"{path} exists already; name another file with --output")
    files = [data] if isinstance(data, str) else list(data)
    for file in files:
        _require_name(file)
    held_out, comments, told, has_documents = _read(files, reporter or Reporter())
    replace_file(path, starter_recipe(files, model, held_out, comments, has_documents).encode())
    return told


def _require_name(file: str) -> None:
    """What a recipe can name: some text, and UTF-8."""
    if not file.strip():
        raise RecipeError("DATA: a name is empty; name the files of your rows")
    try:
        file.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"DATA: {shown_name(file)} is not UTF-8, as a recipe has to be; rename the file") from error


def command(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Your rows: files, globs or hub ids.")],
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a hub id.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", readable=False, help="Where to write the recipe.")
    ] = None,
) -> None:
    """Read your data and write a starter recipe for it, every line explained."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data[0]).stem).strip("-._") or "recipe"
    path = output or Path(f"{name}.yaml")
    for line in init(data, path, model=model or DEFAULT_MODEL, reporter=Printing()):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"wrote {escape(str(path))}. Next: strop check {escape(str(path))}")


Reading = tuple[int | None, list[str], list[str], bool]
"""The percentage to hold out, comments for the recipe, what to tell, and whether there are documents."""


def _read(files: list[str], reporter: Reporter) -> Reading:
    from strop.data.survey import survey

    recipe = DataSection(train_file=tuple(files))
    try:
        sources = open_sources(recipe, recipe.train_file)
    except DataError as error:
        count = 0 if isinstance(error.__cause__, OSError) else _count_rows(files)  # what cannot be read has no shape
        if not count:
            raise
        return _undecided(str(error), count)
    with reporter.waiting("reading the rows") as seen:
        found = survey(sources, TrainSection().seed, seen)
    if not found.rows_used:
        first = found.faults[0]
        if "data.columns" in first.reason:
            return _undecided(str(first), found.num_faults)
        raise DataError(f"none of {counted(found.num_faults, 'row')} can be used; the first: {first}")
    about = [_how_read(source, columns) for source, columns in zip(sources, found.columns, strict=True)]
    unused = [f"not used: {', '.join(found.unused)}"] if found.unused else []
    needs = _of_template(found)
    told = [f"{counted(found.rows_used, 'row')} can be used", *about, *unused, *found.found, *needs]
    has_documents = any(source.shape.format == "text" for source in sources)
    return found.percentage, [*about, *unused, *needs, *_of_faults(found)], [*told, *_faults(found)], has_documents


def _count_rows(files: list[str]) -> int:
    """How many rows there are whose shape is all that is not known; counts no further than is asked.

    Raises:
        DataError: A file cannot be found or read.
    """
    places = [(file, None, None) for file in files]
    rows = (row for paths, part in find(places, "DATA") for path in paths for row in read_rows(path, part))
    return sum(1 for _ in islice((row for row in rows if not isinstance(row, Fault)), _ENOUGH_ROWS))


def _undecided(reason: str, num_rows: int) -> Reading:
    """The recipe of rows that can be read once it says how."""
    proposed = re.search(r"data\.columns=(\{[^}]*\})", reason)
    columns = (
        proposed[1] if proposed else "{prompt: QUESTION, completion: ANSWER}   # or {messages: TURNS}, {text: DOCUMENT}"
    )
    comments = [f"before it trains, say which column is which: {reason}", f"columns: {columns}"]
    return (
        5 if num_rows >= _ENOUGH_ROWS else None,
        comments,
        [f"data.columns has to be set in the recipe before it trains: {reason}"],
        False,
    )


def _how_read(source: Source, columns: dict[str, str]) -> str:
    """As a recipe would say it."""
    shown = ", ".join(f"{part}: {yaml_scalar(name)}" for part, name in columns.items())
    where = f"{source.shape.format} rows in {source.name}"
    return f"columns: {{{shown}}}   # found: {where}" if shown else f"found: {where}"


def _of_template(found: Survey) -> list[str]:
    if not found.template_needs:
        return []
    what = " and ".join(sorted(found.template_needs))
    return [f"chat_template: FILE.jinja   # if the model's own has no place for the {what} of these rows"]


def _of_faults(found: Survey) -> list[str]:
    if not found.num_faults:
        return []
    rows = counted(found.num_faults, "row")
    return [f"on_bad_row: skip   # {rows} cannot be used: mend them, or skip them with this line"]


def _faults(found: Survey) -> list[str]:
    if not found.num_faults:
        return []
    total, shown = found.num_faults + found.rows_used, [f"  {fault}" for fault in found.faults[:_FAULTS_SHOWN]]
    more = [f"  and {found.num_faults - len(shown):,} more"] if found.num_faults > len(shown) else []
    return [
        f"{found.num_faults:,} of {counted(total, 'row')} cannot be used: mend them, or set data.on_bad_row to skip",
        *shown,
        *more,
    ]
