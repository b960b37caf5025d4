"""The control plane's MLflow calls: it makes each job's run, and closes it when all is over."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from service.deferred_runs import ping
from service.errors import TrackingUnavailableError
from service.notes import describe
from service.queue.job import Job, Kind, State
from service.shipping import Shipping, completeness
from service.tokens import LOCAL
from service.tracking_client import TrackingClient
from workers.attempt import AttemptFolder
from workers.courier import REFUSALS
from workers.parameters import PER_BATCH, flatten

logger = logging.getLogger(__name__)

TAG_JOB = "caps.job"
TAG_KIND = "caps.kind"
TAG_PARENT = "mlflow.parentRunId"
TAG_USER = "mlflow.user"
"""Whom MLflow's page shows as the run's user."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's page opens on its views for language models."""

FINAL_STATUS = {
    State.SUCCEEDED: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
}

SLICE_S = 1.0
"""For how long one call of `close` sends what a dead worker left."""


class MlflowRuns:
    """Runs on one tracking server; every method raises TrackingUnavailableError when it is away."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = TrackingClient(tracking_uri=uri)
        self._shipping = Shipping(self._client, _refused)

    def ping(self) -> None:
        """Raises TrackingUnavailableError unless the server answers."""
        ping(self.uri)

    def ensure(self, job: Job) -> tuple[str, str]:
        """The job's (experiment id, run id); made on the first call, found by its tag later."""
        self.ping()
        try:
            experiment = self._experiment(job.spec.experiment)
            found = self._client.search_runs([experiment], own_run(job))
            run_id = str(found[0].info.run_id) if found else self._create(experiment, job)
            self._log_params(run_id, job)  # of a run that is found they may be missing
            return experiment, run_id
        except MlflowException as error:
            raise TrackingUnavailableError(f"MLflow at {self.uri}: {error.message}") from error

    def drop(self, run_id: str) -> None:
        """End a run that was made for a job which has another."""
        try:
            self._client.set_terminated(run_id, "KILLED")
        except MlflowException as error:
            if not _refused(error):
                raise TrackingUnavailableError(f"MLflow at {self.uri}: {error.message}") from error

    def close(self, job: Job, folder: AttemptFolder | None) -> bool:
        """Send what its workers left unsent, then give the run its final status.

        A run that MLflow refuses to change, since somebody deleted it, counts as closed. Takes not
        much more than `SLICE_S`, or the time of one call that gets no answer.

        Args:
            job: It has ended.
            folder: Of its last attempt; None where nothing was ever attempted.

        Returns:
            False while there is more to send: call again.
        """
        assert job.run_id is not None
        self.ping()
        until = time.monotonic() + SLICE_S
        try:
            if folder is not None and not self._shipping.ship(job, folder, until):
                return False
        except (MlflowException, OSError) as error:
            raise TrackingUnavailableError(f"MLflow at {self.uri}: {error}") from error
        with self._closing(job, job.run_id):
            self._close_run(job, job.run_id, folder)
        with self._closing(job, job.run_id):
            self._end_open(job, own_run(job))  # two replicas at the same moment may have made two
        if job.kind is Kind.SEARCH:
            with self._closing(job, job.run_id):
                self._end_open(job, f"tags.`{TAG_PARENT}` = '{job.run_id}'")
        return True

    def _close_run(self, job: Job, run_id: str, folder: AttemptFolder | None) -> None:
        told = {"caps.state": job.state.value}
        if folder is not None:
            told["caps.tracking"] = completeness(folder)
        if job.reason:
            told["caps.reason"] = job.reason.value
        for name, value in told.items():
            self._client.set_tag(run_id, name, value)
        status = FINAL_STATUS[job.state]
        if self._client.get_run(run_id).info.status != status:
            self._client.set_terminated(run_id, status)

    def _end_open(self, job: Job, which: str) -> None:
        """End what somebody who was killed could not: runs of trials, a second run of the job."""
        running = f"{which} AND attributes.status = 'RUNNING'"
        assert job.experiment_id is not None
        for run in self._client.search_runs([job.experiment_id], running, max_results=1000):
            with self._closing(job, run.info.run_id):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @contextmanager
    def _closing(self, job: Job, run_id: str) -> Iterator[None]:
        """A refusal is logged and holds nobody up; whatever else goes wrong is an outage."""
        try:
            yield
        except MlflowException as error:
            if not _refused(error):
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
        if job.owner != LOCAL:
            ours[TAG_USER] = job.owner
        tags = {**job.spec.labels, **ours}
        run = self._client.create_run(experiment, tags=tags, run_name=job.spec.name)
        return str(run.info.run_id)

    def _log_params(self, run_id: str, job: Job) -> None:
        params = [Param(name, value) for name, value in flatten(job.spec)]
        for start in range(0, len(params), PER_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PER_BATCH])


def own_run(job: Job) -> str:
    """MLflow's filter that finds the job's own run."""
    ours = f"tags.`{TAG_JOB}` = '{job.id}'"
    if job.kind is Kind.SEARCH:  # its trials' runs may carry its id too
        ours += f" AND tags.`{TAG_KIND}` = '{job.kind}'"
    return ours


def _refused(error: Exception) -> bool:
    """Whether the answer will be the same next time."""
    return isinstance(error, MlflowException) and error.get_http_status_code() in REFUSALS
