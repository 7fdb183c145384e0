"""A run folder as a report reads it: what is missing or damaged is skipped with a note, and stops nothing."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from strop.errors import RecipeError, StorageError, StropError
from strop.evaluation.result import Evaluation
from strop.readable import counted
from strop.reporting.series import Columns, read_columns
from strop.reporting.text import size
from strop.run.folder import RunFolder
from strop.run.manifest import Manifest
from strop.run.records import Sample, changed_records, sound_samples

_SIGNS = ("run.json", "recipe.yaml", "metrics.jsonl")
"""One of these makes a folder a run's."""


@dataclass
class RunFiles:
    """What a run folder holds.

    Attributes:
        path: As the user gave it.
        name: To tell it from the others on the page.
        status: As `RunFolder.status`; `unknown` without a manifest.
        manifest: run.json; empty where there is none.
        recipe: Dotted keys of recipe.yaml.
        columns: metrics.jsonl.
        evaluation: evaluation.json; None where there is none in today's form.
        samples: samples.jsonl.
        checkpoints: Name and size.
        notes: What is missing here or damaged, a sentence each.
    """

    path: Path
    name: str
    status: str = "unknown"
    manifest: Manifest = field(default_factory=Manifest)
    recipe: dict[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    evaluation: Evaluation | None = None
    samples: list[Sample] = field(default_factory=list)
    checkpoints: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_run(path: Path, name: str) -> RunFiles:
    """Everything of a run that a page shows.

    Raises:
        RecipeError: There is no such folder, or nothing in it says that it is a run's.
    """
    if not any((path / sign).exists() for sign in _SIGNS):
        raise RecipeError(f"{path} is not a run folder: it has no run.json (`strop runs` lists runs)")
    run = RunFiles(path, name)
    _read_manifest(run)
    run.recipe = _read_recipe(run)
    run.columns = _read_metrics(run)
    _compare_records(run)
    run.evaluation = _read_evaluation(run)
    run.samples = _read_samples(run)
    run.checkpoints = list(_checkpoints(path / "checkpoints"))
    return run


def _read_manifest(run: RunFiles) -> None:
    folder = RunFolder(run.path)
    try:
        manifest = folder.manifest
        run.status = str(folder.status or "unknown")
    except StropError:
        run.notes.append("run.json cannot be read: what it says of this run is missing here.")
        return
    if manifest is None:
        run.notes.append("There is no run.json: the run had not begun, or the file was removed.")
    else:
        run.manifest = manifest
        run.notes += [f"{line}." for line in manifest.lost]


def _read_recipe(run: RunFiles) -> dict[str, str]:
    try:
        contents = yaml.safe_load((run.path / "recipe.yaml").read_bytes())
        if not isinstance(contents, dict):
            raise ValueError("not a recipe")
        if changed := _changed(run):
            run.notes.append(f"{changed}.")
        return dict(_flat(contents))
    except FileNotFoundError:
        run.notes.append("There is no recipe.yaml.")
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        run.notes.append("recipe.yaml cannot be read.")
    return {}


def _changed(run: RunFiles) -> str | None:
    with suppress(StropError):  # run.json is damaged, which is told where it is read
        return RunFolder(run.path).recipe_changed
    return None


def _flat(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def _read_metrics(run: RunFiles) -> Columns:
    try:
        with (run.path / "metrics.jsonl").open("rb") as lines:
            columns = read_columns(lines)
    except FileNotFoundError:
        if run.manifest.progress is not None:
            run.notes.append("There is no metrics.jsonl: the curves are missing here.")
        return Columns()
    except OSError as error:
        run.notes.append(f"metrics.jsonl cannot be read: {error.strerror}.")
        return Columns()
    if columns.bad_lines > (run.status == "running"):  # the last line of a run that still trains may be half written
        run.notes.append(
            f"metrics.jsonl: {counted(columns.bad_lines, 'line is not a record', 'lines are not records')}; skipped."
        )
    made = run.manifest.progress.step if run.manifest.progress else 0
    if (missing := made - len(columns.series("train", "loss"))) > 0:
        run.notes.append(f"metrics.jsonl has nothing of {missing:,} of {counted(made, 'step')}.")
    for kind, name, what in (("train", "loss", "losses"), ("eval", "eval_loss", "held-out losses")):
        series = columns.series(kind, name)
        if bad := len(series) - len(series.finite):
            run.notes.append(f"Of {len(series):,} {what} {bad:,} are not a number; the curves skip them.")
    return columns


def _compare_records(run: RunFiles) -> None:
    """Note what is not as it was when the run finished."""
    with suppress(StropError):  # which is told where it is read
        for name in changed_records(run.path, run.manifest.records):
            run.notes.append(
                f"{name} is not what run.json says that the run wrote: lines were lost or changed, or run.json is of "
                "another run."
            )


def _read_evaluation(run: RunFiles) -> Evaluation | None:
    try:
        contents = RunFolder(run.path).read_evaluation()
    except StorageError as error:
        run.notes.append(f"{error}, and is not shown. `strop evaluate` writes a new one.")
        return None
    found = Evaluation.from_json(contents)
    if found is None and contents is not None:
        run.notes.append(
            "evaluation.json was written by an earlier strop and is not shown. `strop evaluate` writes a new one."
        )
    return found


def _read_samples(run: RunFiles) -> list[Sample]:
    try:
        samples, bad = sound_samples(RunFolder(run.path).samples_path)
    except StorageError as error:
        run.notes.append(f"{error}.")
        return []
    if bad > (run.status == "running"):  # as in metrics.jsonl
        run.notes.append(f"samples.jsonl: {counted(bad, 'line is not a sample', 'lines are not samples')}; skipped.")
    return samples


def _checkpoints(folder: Path) -> Iterator[tuple[str, str]]:
    if folder.is_dir():
        for path in sorted(folder.glob("step-*")):
            if (path / "manifest.json").exists():
                yield path.name, size(sum(file.stat().st_size for file in path.iterdir() if file.is_file()))
