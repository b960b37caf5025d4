"""Hands an attempt over: its orders into its folder, then the call to Ray."""

from typing import Any

from service.demand import need_of
from service.errors import JobNotFoundError, StaleJobError
from service.queue.job import Job, Kind
from service.queue.store import NewEvent
from service.reconciler.parts import Parts
from service.version import package_version
from workers.attempt import AnyAttempt, Attempt, SearchAttempt


def submit(parts: Parts, job: Job) -> None:
    """Have Ray run the current attempt. Can be repeated: Ray runs a submission once."""
    assert job.current is not None
    parts.folder(job).write_attempt(_orders(parts, job))
    entrypoint = need_of(job.spec).entrypoint
    submission = job.current.submission_id
    parts.cluster.submit(submission, job.id, job.attempt, entrypoint, parts.store.queue_id())
    event = NewEvent("dispatched", f"Ray has {submission}")
    parts.store.update(job, event=event, attempt={"submitted_at": parts.now()})


def with_run(parts: Parts, job: Job) -> Job:
    """The job with its run in MLflow.

    A replica that was held up meanwhile may have made a second one, which it ends.

    Raises:
        TrackingUnavailableError: MLflow is away.
        StaleJobError: The job was changed meanwhile.
    """
    experiment_id, run_id = parts.runs.ensure(job)
    try:
        return parts.store.update(job, experiment_id=experiment_id, run_id=run_id)
    except StaleJobError:
        if _has_another_run(parts, job, run_id):
            parts.runs.drop(run_id)
        raise


def _has_another_run(parts: Parts, job: Job, run_id: str) -> bool:
    try:
        return parts.store.get(job.id).run_id not in (None, run_id)
    except JobNotFoundError:
        return True


def wait_for_job(parts: Parts, source: str) -> str:
    """Why the weights of a job that others begin with are not there yet, if so."""
    try:
        origin = parts.store.get(source)
    except JobNotFoundError:
        return ""  # the worker finds no checkpoint and says so
    if origin.state.terminal:
        return ""
    return f"init_from: job {origin.id} is {origin.state}, it has not ended yet"


def _orders(parts: Parts, job: Job) -> AnyAttempt:
    """What the attempt's first process is to do."""
    assert job.run_id is not None
    common: dict[str, Any] = {
        "package_version": package_version(),
        "job": job.id,
        "attempt": job.attempt,
        "spec": job.spec,
        "tracking_uri": parts.settings.mlflow_uri,
        "run_id": job.run_id,
        "init_checkpoint": _init_checkpoint(parts, job),
    }
    if job.kind is Kind.TRAIN:
        return Attempt(**common)
    assert job.experiment_id is not None
    return SearchAttempt(**common, experiment_id=job.experiment_id, retry_through=job.retry_through)


def _init_checkpoint(parts: Parts, job: Job) -> str | None:
    source = job.training.init_from
    if source is None:
        return None
    if source.path is not None:
        return source.path
    assert source.job is not None
    missing = f"jobs/{source.job}/no-{source.checkpoint}-checkpoint"
    try:
        origin = parts.store.get(source.job)
    except JobNotFoundError:
        return missing
    checkpoints = (origin.result or {}).get("checkpoints", {})
    return str(checkpoints.get(source.checkpoint, {}).get("path", missing))
