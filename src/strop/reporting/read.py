"""A run folder as a report reads it: whatever is missing or damaged is left out and said so, and stops nothing."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from strop.errors import RecipeError, StropError
from strop.reporting.series import Columns, read_columns
from strop.reporting.text import mapping, size
from strop.run.folder import RunFolder

_SIGNS = ("run.json", "recipe.yaml", "metrics.jsonl")
"""One of these makes a folder a run's."""


@dataclass
class RunFiles:
    """What a run folder holds.

    Attributes:
        path: As the user gave it.
        name: To tell it from the others on the page.
        status: As `RunFolder.status`; `unknown` without a manifest.
        manifest: run.json.
        recipe: Dotted keys of recipe.yaml.
        columns: metrics.jsonl.
        evaluation: evaluation.json, in today's form; empty where there is none.
        samples: Lines of samples.jsonl.
        checkpoints: Name and size.
        told: What was chosen or had changed when the run last began.
        notes: What is missing here or damaged, a sentence each.
    """

    path: Path
    name: str
    status: str = "unknown"
    manifest: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
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
    run.evaluation = _read_evaluation(run)
    run.samples = list(_read_samples(run))
    run.checkpoints = list(_checkpoints(path / "checkpoints"))
    return run


def _read_manifest(run: RunFiles) -> None:
    folder = RunFolder(run.path)
    try:
        run.manifest, run.status = folder.manifest, str(folder.status or "unknown")
    except StropError:
        run.notes.append("run.json cannot be read: what it says of this run is missing here.")
        return
    if not run.manifest:
        run.notes.append("There is no run.json: the run had not begun, or the file was removed.")
    kept = run.manifest.get("notes")
    run.told = [str(note) for note in kept] if isinstance(kept, list) else []


def _read_recipe(run: RunFiles) -> dict[str, str]:
    try:
        contents = yaml.safe_load((run.path / "recipe.yaml").read_bytes())
        return dict(_flat(mapping(contents)))
    except FileNotFoundError:
        run.notes.append("There is no recipe.yaml.")
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        run.notes.append("recipe.yaml cannot be read.")
    return {}


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
        return Columns()
    except OSError as error:
        run.notes.append(f"metrics.jsonl cannot be read: {error.strerror}.")
        return Columns()
    if columns.bad_lines > (run.status == "running"):  # the last line of a run that goes on may be half written
        run.notes.append(f"metrics.jsonl: {columns.bad_lines:,} lines that are no record are left out.")
    for kind, name, what in (("train", "loss", "losses"), ("eval", "eval_loss", "held-out losses")):
        series = columns.series(kind, name)
        if bad := len(series) - len(series.finite):
            run.notes.append(f"Of {len(series):,} {what} {bad:,} are not a number; the curves leave them out.")
    return columns


def _read_evaluation(run: RunFiles) -> dict[str, Any]:
    path = run.path / "evaluation.json"
    try:
        contents = mapping(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        run.notes.append("evaluation.json cannot be read; `strop evaluate` writes it anew.")
        return {}
    if not isinstance(contents.get("difference"), dict):
        run.notes.append("evaluation.json is of an earlier strop and is left out; `strop evaluate` writes it anew.")
        return {}
    return contents


def _read_samples(run: RunFiles) -> Iterator[dict[str, Any]]:
    bad = 0
    try:
        with (run.path / "samples.jsonl").open("rb") as lines:
            for line in lines:
                try:
                    sample = json.loads(line)
                except (ValueError, RecursionError):
                    sample = None
                if isinstance(sample, dict) and type(sample.get("step")) is int:
                    yield sample
                else:
                    bad += 1
    except FileNotFoundError:
        return
    except OSError as error:
        run.notes.append(f"samples.jsonl cannot be read: {error.strerror}.")
    if bad > (run.status == "running"):
        run.notes.append(f"samples.jsonl: {bad:,} lines that are no sample are left out.")


def _checkpoints(folder: Path) -> Iterator[tuple[str, str]]:
    if folder.is_dir():
        for path in sorted(folder.glob("step-*")):
            if (path / "manifest.json").exists():
                yield path.name, size(sum(file.stat().st_size for file in path.iterdir() if file.is_file()))
