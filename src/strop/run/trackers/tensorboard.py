"""TensorBoard event files in the run folder, written by tensorboardX: no TensorFlow, no server."""

import json
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from strop.run.trackers.tracker import TrackedRun


def open_run(run: TrackedRun) -> "_Events":
    """A new event file; TensorBoard drops what a lost attempt wrote after the step that this one resumes from."""
    writer = SummaryWriter(
        str(run.folder / "tensorboard"),
        purge_step=run.step + 1 if run.step else None,
        filename_suffix=f".{run.step}",  # files are named by the second: a quick second attempt would overwrite
    )
    writer.add_text("recipe", f"```json\n{json.dumps(run.recipe, indent=2)}\n```", 0)
    return _Events(writer)


class _Events:
    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
