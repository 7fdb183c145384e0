"""Trackio: a local database, shown by `trackio show`, or a Space that TRACKIO_SPACE_ID names."""

import os
from collections.abc import Mapping

import trackio

from strop.run.trackers.tracker import TrackedRun


def open_run(run: TrackedRun) -> "_TrackioRun":
    """The run of this name and id, new or resumed."""
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "strop"),
        name=f"{run.name}-{run.id}",
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
        config=dict(run.recipe),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return _TrackioRun()


class _TrackioRun:
    def log(self, step: int, values: Mapping[str, float]) -> None:
        trackio.log(dict(values), step=step)

    def close(self) -> None:
        trackio.finish()
