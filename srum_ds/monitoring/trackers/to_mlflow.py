"""MLflow (https://mlflow.org/docs). ``MLFLOW_TRACKING_URI`` says where to; without, ``RUN/mlruns``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srum_ds.common.files import write_atomic
from srum_ds.monitoring.trackers.protocol import TrackerRun, need

FOLDER = "mlruns"
RUN_ID = "srum_ds_run_id"
_PARAMETERS = 100
_LONGEST = 500


class MlflowTracker:
    """One run of MLflow, the same again where a run of ours goes on. UserError where mlflow is not installed.

    It goes through ``MlflowClient``, which touches no run that is active in this process.
    """

    def __init__(self, run: TrackerRun) -> None:
        local = run.folder / FOLDER
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local.resolve().as_uri()
        if uri.startswith("file:"):
            # Newer versions ask for this word where a folder is the store.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise need("mlflow", "mlflow") from error
        self._metric: Any = Metric
        self._client: Any = MlflowClient(tracking_uri=uri)
        kept = run.folder / FOLDER / RUN_ID
        if run.start and kept.is_file():
            self._id = kept.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(run.project)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        write_atomic(kept, self._id + "\n")
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in run.settings.items()]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id, metrics=[self._metric(key, value, now, step) for key, value in figures.items()]
        )

    def image(self, step: int, name: str, path: Path) -> None:
        """See ``Tracker``."""
        self._client.log_artifact(self._id, str(path), artifact_path=f"samples/{name}")

    def close(self) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._id)
