"""The runs below a folder, as `strop runs` lists them."""

from dataclasses import dataclass
from pathlib import Path

from strop.errors import RecipeError, StropError
from strop.run.folder import RunFolder
from strop.run.records import EvalRecord, TrainRecord, base_and_adapter, changed_records, read_metrics, seconds_of

_SIGNS = ("run.json", "metrics.jsonl")
"""A run that has begun has both."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What `strop runs` shows of a run; None where it is not known.

    Attributes:
        status: As `RunFolder.status`; `changed` where its records are no longer what it wrote, `damaged` where files
            are gone or cannot be read.
        step: Updates made, of `num_steps`.
        loss: In training, of the last step.
        base_loss: The base model's on the held-out rows.
        eval_loss: The adapter's on them; of a run that has not ended, the last one.
        seconds: Of training, over all attempts.
        created: UTC, ISO 8601.
    """

    path: Path
    status: str
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    base_loss: float | None = None
    eval_loss: float | None = None
    seconds: float | None = None
    created: str | None = None


def list_runs(root: Path) -> list[RunSummary]:
    """The runs directly below a folder, by name, or the one that it is. A damaged run is listed as such.

    Raises:
        RecipeError: There is no such folder.
    """
    if not root.is_dir():
        raise RecipeError(f"there is no folder {root}; runs are in train.output_dir, by default runs/NAME")
    candidates = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return [_summarise(path) for path in candidates if any((path / sign).exists() for sign in _SIGNS)]


def _summarise(path: Path) -> RunSummary:
    folder = RunFolder(path)
    try:
        if not (path / "run.json").exists():
            return RunSummary(path, "damaged")
        manifest, status = folder.manifest, folder.status
        records = read_metrics(folder.metrics_path)
        changed = changed_records(path, manifest.records) if manifest else []
    except (StropError, OSError):
        return RunSummary(path, "damaged")
    steps = [record for record in records if isinstance(record, TrainRecord)]
    evals = [(record.step, record.eval_loss) for record in records if isinstance(record, EvalRecord)]
    base, adapter = base_and_adapter(evals, manifest.adapter_step if manifest else None)
    progress = manifest.progress if manifest else None
    return RunSummary(
        path=path,
        status="changed" if changed else status or "unknown",
        step=steps[-1].step if steps else 0,
        num_steps=manifest.num_steps if manifest else None,
        loss=steps[-1].loss if steps else None,
        base_loss=base,
        eval_loss=adapter,
        seconds=progress.seconds if progress else seconds_of(steps),
        created=manifest.created if manifest else None,
    )
