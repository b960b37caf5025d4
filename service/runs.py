"""The control plane's MLflow calls: it makes each job's run, and closes it when all is over."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Read by mlflow at import: a dead server must cost seconds, not the default of minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import httpx
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from service.errors import TrackingUnavailableError
from service.notes import describe
from service.queue.job import Job, Kind, State
from workers.parameters import PER_BATCH, flatten

logger = logging.getLogger(__name__)

TAG_JOB = "caps.job"
TAG_KIND = "caps.kind"
TAG_PARENT = "mlflow.parentRunId"

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's page opens on its views for language models."""

FINAL_STATUS = {
    State.SUCCEEDED: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
}

REFUSALS = frozenset({400, 404, 409})
"""Status of an answer that will be the same next time, as of a run that somebody deleted."""


class MlflowRuns:
    """Runs on one tracking server; every method raises TrackingUnavailableError when it is away."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri)

    def ping(self) -> None:
        """Raises TrackingUnavailableError unless the server answers."""
        try:
            answer = httpx.get(f"{self.uri.rstrip('/')}/health", timeout=5, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise TrackingUnavailableError(f"MLflow at {self.uri} does not answer") from error

    def ensure(self, job: Job) -> tuple[str, str]:
        """The job's (experiment id, run id); made on the first call, found by its tag later."""
        self.ping()
        try:
            experiment = self._experiment(job.spec.experiment)
            ours = f"tags.`{TAG_JOB}` = '{job.id}'"
            if job.kind is Kind.SEARCH:  # its trials' runs may carry its id too
                ours += f" AND tags.`{TAG_KIND}` = '{job.kind}'"
            found = self._client.search_runs([experiment], ours)
            if found:
                return experiment, found[0].info.run_id
            return experiment, self._create(experiment, job)
        except MlflowException as error:
            raise TrackingUnavailableError(f"MLflow at {self.uri}: {error.message}") from error

    def close(self, job: Job) -> None:
        """Give the run its final status, unless the worker has done so already.

        A run that MLflow refuses to change, since somebody deleted it, counts as closed.
        """
        assert job.run_id is not None
        self.ping()
        with self._closing(job, job.run_id):
            self._close_run(job, job.run_id)
        if job.kind is Kind.SEARCH:
            with self._closing(job, job.run_id):
                self._close_trials(job, job.run_id)

    def _close_run(self, job: Job, run_id: str) -> None:
        status = FINAL_STATUS[job.state]
        if self._client.get_run(run_id).info.status != status:
            self._client.set_terminated(run_id, status)
        self._client.set_tag(run_id, "caps.state", job.state.value)
        if job.reason:
            self._client.set_tag(run_id, "caps.reason", job.reason.value)

    def _close_trials(self, job: Job, parent: str) -> None:
        """End what a killed driver could not."""
        open_trials = f"tags.`{TAG_PARENT}` = '{parent}' AND attributes.status = 'RUNNING'"
        assert job.experiment_id is not None
        for run in self._client.search_runs([job.experiment_id], open_trials, max_results=1000):
            with self._closing(job, run.info.run_id):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @contextmanager
    def _closing(self, job: Job, run_id: str) -> Iterator[None]:
        """A refusal is logged and holds nobody up; whatever else goes wrong is an outage."""
        try:
            yield
        except MlflowException as error:
            if error.get_http_status_code() not in REFUSALS:
                raise TrackingUnavailableError(f"MLflow at {self.uri}: {error.message}") from error
            logger.warning(
                "job %s: run %s stays as it is, MLflow refuses to close it: %s",
                job.id,
                run_id,
                error.message,
            )

    def _experiment(self, name: str) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is None:
            try:
                return str(self._client.create_experiment(name, tags=EXPERIMENT_TAGS))
            except MlflowException:  # somebody else made it meanwhile
                existing = self._client.get_experiment_by_name(name)
                if existing is None:
                    raise
        if existing.lifecycle_stage == "deleted":
            self._client.restore_experiment(existing.experiment_id)
        return str(existing.experiment_id)

    def _create(self, experiment: str, job: Job) -> str:
        ours = {
            TAG_JOB: job.id,
            TAG_KIND: job.kind.value,
            "mlflow.source.name": "capsnet",
            "mlflow.note.content": describe(job),
        }
        tags = {**job.spec.labels, **ours}
        run = self._client.create_run(experiment, tags=tags, run_name=job.spec.name)
        run_id = str(run.info.run_id)
        params = [Param(name, value) for name, value in flatten(job.spec)]
        for start in range(0, len(params), PER_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PER_BATCH])
        return run_id
