"""MLflow, wherever MLFLOW_TRACKING_URI points; by default MLflow's own local store."""

import os
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric

from strop.run.trackers.tracker import TrackedRun

_TAG = "strop.run_id"


def open_run(run: TrackedRun) -> "_MlflowRun":
    """The run with this tag, new or resumed, in the experiment MLFLOW_EXPERIMENT_NAME or `strop`."""
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "strop")
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.search_runs([experiment_id], f"tags.`{_TAG}` = '{run.id}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return _MlflowRun(client, found[0].info.run_id)
    begun = client.create_run(experiment_id, tags={_TAG: run.id}, run_name=run.name).info.run_id
    for section, keys in run.recipe.items():
        for key, value in keys.items() if isinstance(keys, dict) else [("", keys)]:
            client.log_param(begun, f"{section}.{key}".rstrip("."), str(value)[:500])  # MLflow's limit
    return _MlflowRun(client, begun)


class _MlflowRun:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
