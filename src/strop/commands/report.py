"""`strop report`: a run's page, written beside its files, or served and kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strop.commands.arguments import as_path, as_run
from strop.commands.console import out
from strop.commands.run import Run
from strop.errors import RecipeError
from strop.run.durable import replace_file, writing

if TYPE_CHECKING:
    from strop.reporting.page import Page
    from strop.reporting.report_server import PageServer

REPORT_FILE = "report.html"


def report(runs: Run | str | Path | Sequence[Run | str | Path], *, output: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about one or several runs.

    Args:
        runs: One or several; finished or not.
        output: Where it goes; by default report.html in the run's folder, or here if there are several.

    Returns:
        The page.

    Raises:
        RecipeError: A folder is not a run's, there are none or too many, or the output is a file of another kind.
        StorageError: It cannot be written.
    """
    chosen = [as_run(run) for run in (runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs])]
    if not chosen:
        raise RecipeError("name at least one run")
    target = as_path("output", output) or (chosen[0].path / REPORT_FILE if len(chosen) == 1 else Path(REPORT_FILE))
    page = _page(chosen)
    with writing(target):
        is_other = target.exists() and not _is_report(target)
    if is_other:
        raise RecipeError(f"{target} exists and is not a report by strop; name another file with --output")
    replace_file(target, page.html)
    return target


def _is_report(path: Path) -> bool:
    from strop.reporting.page import GENERATOR

    if not path.is_file():  # a pipe or a device has no end
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return not head or f'content="{GENERATOR}"'.encode() in head


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", readable=False, help="Run folders, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", readable=False, help="Where it goes. [default: report.html in the run's folder]"
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve it on 127.0.0.1, kept up to date.")] = False,
    port: Annotated[int, typer.Option(help="With --watch: where. 0 takes a free one.")] = 0,
) -> None:
    """One page about a run, or about several side by side: curves, answers, data, recipe, cost.

    It is a single HTML file that needs no network. Every run writes its own when it ends.
    """
    if watch and output is not None:
        raise RecipeError("--output does not go with --watch, which serves the page and writes no file")
    chosen = [Run(run) for run in runs]
    if watch:
        _serve(page_server(chosen, port))
    else:
        out.print(f"wrote {report(chosen, output=output)}", markup=False, soft_wrap=True)


def page_server(runs: Sequence[Run], port: int = 0) -> PageServer:
    """Serve the page on 127.0.0.1, where it keeps itself up to date; call `serve_forever` on what is returned.

    Raises:
        RecipeError: A folder is not a run's, there are too many, or the port is taken.
    """
    from strop.reporting.report_server import PageServer

    _page(runs, live=True)
    return PageServer(lambda: _page(runs, live=True), port)


def keep_report(run: Run, note: Callable[[str], None]) -> None:
    """Write the page at the end of something that matters more: a failure is only a note."""
    try:
        report([run])
    except Exception as error:  # whatever it is, the run is done and its result is sound
        note(f"{run.path / REPORT_FILE} is not written: {error or type(error).__name__}")


def _page(runs: Sequence[Run], live: bool = False) -> Page:
    from strop.reporting.page import MOST_RUNS, render
    from strop.reporting.read import read_run

    if len(runs) > MOST_RUNS:
        raise RecipeError(f"{len(runs)} runs on one page; at most {MOST_RUNS} can be told apart")
    for run in runs:
        if not run.path.exists():
            _ = run.recipe  # raises, and says which folder may be meant
    return render([read_run(run.path, name) for run, name in zip(runs, _names(runs), strict=True)], live=live)


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or their paths if several have the same name."""
    names = [run.path.resolve().name for run in runs]
    return [str(run.path) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def _serve(server: PageServer) -> None:
    """Say where the page is and serve it until Ctrl-C."""
    out.print(f"{server.url}  (Ctrl-C ends it)", markup=False, soft_wrap=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
