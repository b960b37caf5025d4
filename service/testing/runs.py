"""`FakeMlflow` asked as the reconciler asks for runs, without a network in between."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from service.errors import TrackingUnavailableError
from service.queue.job import Job
from service.runs import FINAL_STATUS, TAG_JOB, TAG_KIND, TAG_PARENT, own_run
from service.testing.mlflow import FakeMlflow, MlflowAwayError, MlflowRefusalError
from workers.attempt import AttemptFolder
from workers.crash import crashing


class FakeRuns:
    """Answers as `service.runs.MlflowRuns` does."""

    def __init__(self, mlflow: FakeMlflow) -> None:
        self.mlflow = mlflow

    def ping(self) -> None:
        """Raises TrackingUnavailableError unless the server answers."""
        with _told():
            self.mlflow.ping()

    def ensure(self, job: Job) -> tuple[str, str]:
        """The job's (experiment id, run id); made on the first call, found by its tag later."""
        with _told():
            name = job.spec.experiment
            self.mlflow.ping()
            if name not in self.mlflow.experiments:
                # Somebody else may make it at the same moment.
                with crashing("mlflow.create-experiment"), suppress(MlflowRefusalError):
                    self.mlflow.create_experiment(name)
            experiment = self.mlflow.experiments[name]
            if found := self.mlflow.search([experiment], own_run(job)):
                return experiment, found[0].id
            tags = {**job.spec.labels, TAG_JOB: job.id, TAG_KIND: job.kind.value}
            with crashing("mlflow.create-run"):
                run = self.mlflow.create_run(experiment, job.spec.name, tags, 0)
            return experiment, run.id

    def drop(self, run_id: str) -> None:
        """End a run that was made for a job which has another."""
        with _told():
            self.mlflow.ping()
            self._end(run_id, "KILLED")

    def close(self, job: Job, folder: AttemptFolder | None = None) -> bool:
        """Give the run its final status; one that refuses counts as closed.

        Nothing is sent for dead workers: `service.runs` does that by parts, and says False before.
        """
        assert job.run_id is not None
        with _told():
            self._tag(job.run_id, "caps.state", job.state.value)
            self._end(job.run_id, FINAL_STATUS[job.state])
            for which in (own_run(job), f"tags.`{TAG_PARENT}` = '{job.run_id}'"):
                running = f"{which} AND attributes.status = 'RUNNING'"
                for run in self.mlflow.search([job.experiment_id or ""], running):
                    self._end(run.id, "KILLED")
        return True

    def _end(self, run_id: str, status: str) -> None:
        try:
            run = self.mlflow.change(run_id)
        except MlflowRefusalError:
            return
        if run.status != status:
            with crashing("mlflow.set-terminated"):
                run.status = status

    def _tag(self, run_id: str, key: str, value: str) -> None:
        try:
            run = self.mlflow.change(run_id)
        except MlflowRefusalError:
            return
        with crashing("mlflow.set-tag"):
            run.tags[key] = value


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except MlflowAwayError as error:
        raise TrackingUnavailableError(str(error)) from error
