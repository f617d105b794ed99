"""MLflow: a run of an experiment, found again by the tag `raymix.run_id`.

A tag of the tracked run holds the last step logged, so a run can be resumed from another machine. Only the tracking
client is needed (mlflow-skinny), with SQLAlchemy and Alembic for a store in a local file.
"""

import os
from collections.abc import Sequence
from itertools import islice

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.config.tracking import MLflowConfig
from orchestrator.runs.lock import flatten
from orchestrator.tracking.base import RunIdentity, StepRecord, wall_time

RUN_ID_TAG = "raymix.run_id"
LAST_STEP_TAG = "raymix.last_step"
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # per request
_MAX_PARAM_LENGTH = 500  # older servers reject longer values


class MLflowTracker:
    def __init__(self, settings: MLflowConfig, run: RunIdentity) -> None:
        default = f"sqlite:///{run.folder.absolute().parent / 'mlflow.db'}"
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(settings.experiment)
        known = self._client.search_runs([experiment], filter_string=f"tags.`{RUN_ID_TAG}` = '{run.run_id}'")
        if known:
            self._run_id = known[0].info.run_id
            self.last_step = int(known[0].data.tags.get(LAST_STEP_TAG, -1))
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {RUN_ID_TAG: run.run_id, "raymix.folder": str(run.folder)}
            self._run_id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            self.last_step = -1
            params = (Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in flatten(run.config))
            while batch := list(islice(params, _MAX_PARAMS)):
                self._client.log_batch(self._run_id, params=batch)

    def log(self, records: Sequence[StepRecord]) -> None:
        metrics = [
            Metric(key, value, int(wall_time(record) * 1000), record.step)
            for record in records
            for key, value in record.values.items()
        ]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MAX_METRICS])
        self.last_step = records[-1].step
        self._client.log_batch(self._run_id, tags=[RunTag(LAST_STEP_TAG, str(self.last_step))])

    def close(self, is_finished: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if is_finished else "FAILED")

    def _experiment(self, name: str) -> str:
        if known := self._client.get_experiment_by_name(name):
            return known.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:  # another run made it at the same moment
            if known := self._client.get_experiment_by_name(name):
                return known.experiment_id
            raise
