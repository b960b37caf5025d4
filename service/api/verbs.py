"""What is asked of a job that exists: cancel, pause, resume, retry, delete. Searches are jobs."""

from fastapi import APIRouter, Response

from service.api import examples
from service.api.described import answer
from service.api.jobs import JobId
from service.api.problems import documented
from service.api.services import Given
from service.api.steering import delete, reopened, steered
from service.api.views import JobView
from service.errors import (
    DatabaseUnavailableError,
    JobActiveError,
    JobConflictError,
    JobEndedError,
    JobNotFoundError,
    NothingToRetryError,
)
from service.queue.job import Desired, Job, Kind

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_STEERED = documented(JobNotFoundError, JobEndedError, DatabaseUnavailableError)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    responses={
        202: answer(examples.CANCELLING, "The job will end: look at its `state`"),
        **_STEERED,
    },
)
def cancel_job(job_id: JobId, given: Given) -> JobView:
    """End a job: it leaves a checkpoint, then its processes are stopped. Idempotent."""
    return _present(given, steered(given, job_id, Desired.CANCEL))


@router.post(
    "/{job_id}/pause",
    status_code=202,
    responses={
        202: answer(examples.PAUSING, "The job will leave its place: look at its `state`"),
        **_STEERED,
    },
)
def pause_job(job_id: JobId, given: Given) -> JobView:
    """Have a job leave a checkpoint and free its place, until it is resumed. Idempotent."""
    return _present(given, steered(given, job_id, Desired.PAUSE))


@router.post(
    "/{job_id}/resume",
    status_code=202,
    responses={
        202: answer(examples.ACCEPTED, "The job is queued again, or goes on as it was"),
        **_STEERED,
    },
)
def resume_job(job_id: JobId, given: Given) -> JobView:
    """Let a paused job go on from its checkpoint; one that is not paused stays as it is."""
    return _present(given, steered(given, job_id, Desired.RUN))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    responses={
        202: answer(examples.ACCEPTED, "The job is queued again"),
        **documented(
            JobNotFoundError, JobConflictError, NothingToRetryError, DatabaseUnavailableError
        ),
    },
)
def retry_job(job_id: JobId, given: Given) -> JobView:
    """Queue a job that failed or was cancelled again: it goes on from its newest checkpoint.

    Of a search this is `retry-failed`: the trials that failed or were cut off run again.
    """
    job = given.job(job_id)
    job = reopened(given, job) if job.kind is Kind.SEARCH else given.retry(job_id)
    given.wake()
    return _present(given, job)


@router.delete(
    "/{job_id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "The job and its files are forgotten; its MLflow run stays"},
        **documented(JobNotFoundError, JobActiveError, JobConflictError, DatabaseUnavailableError),
    },
)
def delete_job(job_id: JobId, given: Given) -> None:
    """Forget a job that has ended: history, log, checkpoints, pictures. Its MLflow run stays.

    Refused, with the id of the other job, while one that has not ended begins from its checkpoint.
    """
    delete(given, job_id)


def _present(given: Given, job: Job) -> JobView:
    return given.presenter([job]).job(job)
