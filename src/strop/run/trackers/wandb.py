"""Weights & Biases. Without a login it would ask on the terminal; here that is an error instead."""

import os
from collections.abc import Mapping
from typing import Any

import wandb

from strop.run.trackers.tracker import TrackedRun


def open_run(run: TrackedRun) -> "_WandbRun":
    """The run of this id, new or resumed; WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY count."""
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if online and not wandb.login(prompt=False):
        raise RuntimeError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
    began = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "strop"),
        id=run.id,
        name=run.name,
        resume="allow",
        dir=str(run.folder),
        config=dict(run.recipe),
        settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
    )
    return _WandbRun(began)


class _WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
