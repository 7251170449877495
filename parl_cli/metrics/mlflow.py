"""MLflow (the extra `mlflow`): the run's rows as metrics over env steps, its config as parameters.

MLflow takes any step in any order, and keeps each value that it was given. What it knows already is not told again
(`remote`); should a killed run have told a batch that its note does not know, its points lie twice on each other.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parl_cli.config import option
from parl_cli.errors import ConfigError
from parl_cli.metrics.remote import RemoteSink, Written, flat, log
from parl_cli.metrics.sinks import RunRecord

_MAX_METRICS, _MAX_PARAMS, _MAX_TEXT = 1000, 100, 6000  # in one request; characters of a parameter

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # anything else was stopped: KILLED


@dataclass(frozen=True)
class MlflowConfig:
    """Where the run goes; MLflow's own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME …) count, too."""

    tracking_uri: str | None = option(None, "server or store; null: MLflow's own choice, sqlite:///mlflow.db")
    experiment: str | None = option(None, "MLflow experiment; null: MLFLOW_EXPERIMENT_NAME, else parl")
    tags: dict[str, str] = option({}, "tags, {key: value}")


class MlflowSink(RemoteSink):
    """Rows to MLflow."""

    Config = MlflowConfig
    summary = "MLflow: a server, or a local file"

    @classmethod
    def check(cls, options: MlflowConfig) -> None:
        """Whether it can work here.

        Raises:
            ConfigError: mlflow is not installed.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigError('logger.sinks.mlflow: mlflow is not installed; pip install "parl-cli[mlflow]"')

    @classmethod
    def make(cls, run: RunRecord, options: MlflowConfig) -> MlflowSink:
        """The sink of a run."""
        return cls(_MlflowRun(run, options), run.folder, "mlflow")


class _MlflowRun:
    def __init__(self, run: RunRecord, options: MlflowConfig) -> None:
        self.run = run
        self.options = options
        self._client: Any = None
        self._id = ""

    def begin(self, run_id: str | None) -> str:
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell of every table they make, across the live panel
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(self.options.tracking_uri)
        if run_id is None:
            self._id = self._new_run()
        else:
            self._id = run_id
            self._client.update_run(run_id, status="RUNNING")
        log.info("MLflow: run %s in %s", self._id, self._client.tracking_uri)
        return self._id

    def send(self, rows: list[Written]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), int(written.time * 1000), int(written.row["env_steps"]))
            for written in rows
            for name, value in written.row.items()
            if name != "env_steps"
        ]
        for part in _parts(metrics, _MAX_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, status=_STATUS.get(status, "KILLED"))

    def _new_run(self) -> str:
        from mlflow.entities import Param

        name = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "parl"
        tags = {"parl.folder": str(self.run.folder)} | ({"parl.sweep": self.run.sweep} if self.run.sweep else {})
        run = self._client.create_run(self._experiment(name), run_name=self.run.name, tags=tags | self.options.tags)
        params = [Param(key, str(value)[:_MAX_TEXT]) for key, value in flat(self.run.config).items()]
        for part in _parts(params, _MAX_PARAMS):
            self._client.log_batch(run.info.run_id, params=part)
        return str(run.info.run_id)

    def _experiment(self, name: str) -> str:
        """The id of the experiment of this name, which is made if there is none."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                # another job of the sweep may have made it in between
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
