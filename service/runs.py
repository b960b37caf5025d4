"""The control plane's MLflow calls: it makes each job's run, and closes it when all is over."""

import os

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
from workers.parameters import LENGTH, PER_BATCH, flatten

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
        """Give the run its final status, unless the worker has done so already."""
        assert job.run_id is not None
        status = FINAL_STATUS[job.state]
        self.ping()
        try:
            run = self._client.get_run(job.run_id)
            if run.info.status != status:
                self._client.set_terminated(job.run_id, status)
            self._client.set_tag(job.run_id, "caps.state", job.state.value)
            if job.reason:
                self._client.set_tag(job.run_id, "caps.reason", job.reason.value)
            if job.kind is Kind.SEARCH:
                self._close_trials(run.info.experiment_id, job.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return  # somebody deleted it; there is nothing left to close
            raise TrackingUnavailableError(f"MLflow at {self.uri}: {error.message}") from error

    def _close_trials(self, experiment: str, run_id: str) -> None:
        """End what a killed driver could not."""
        open_trials = f"tags.`{TAG_PARENT}` = '{run_id}' AND attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], open_trials, max_results=1000):
            self._client.set_terminated(run.info.run_id, "KILLED")

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
        params = [Param(name, value[:LENGTH]) for name, value in flatten(job.spec)]
        for start in range(0, len(params), PER_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PER_BATCH])
        return run_id
