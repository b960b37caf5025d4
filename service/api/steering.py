"""The verbs of jobs and searches: what both routes do, before each shows what came of it."""

from service.api.services import ForCaller
from service.errors import JobEndedError, NothingToRetryError
from service.queue.job import Desired, Job, State
from workers.trials import TrialState


def steered(given: ForCaller, job_id: str, desired: Desired) -> Job:
    """The job, of which the user wants this from now on. Raises JobEndedError."""
    try:
        job = given.set_desired(job_id, desired)
    except JobEndedError as error:
        raise JobEndedError(error.detail, hint=_instead(given.job(job_id))) from None
    given.wake()
    return job


def reopened(given: ForCaller, search: Job) -> Job:
    """A search that is queued again for what failed or was cut off in it.

    Raises JobConflictError, NothingToRetryError.
    """
    left = (TrialState.FAILED, TrialState.CANCELLED)
    # A search that was cancelled, or lost its driver, has trials left that nobody has chosen yet.
    done = search.state is State.SUCCEEDED
    if done and not any(trial.state in left for trial in given.trials(search)):
        raise NothingToRetryError(f"no trial of search {search.id} failed or was cut off")
    return given.reopen(search.id)


def delete(given: ForCaller, job_id: str) -> None:
    """Have a job forgotten. Raises JobActiveError, JobConflictError."""
    given.request_delete(job_id)
    given.wake()


def _instead(job: Job) -> str | None:
    """What can be done with a job that has ended; None leaves the error's own hint."""
    if not job.state.terminal:
        return "it is being cancelled: wait for its end, then retry it"
    if job.state is State.SUCCEEDED:
        return None
    return f"`capsctl retry {job.id}` or POST /v1/jobs/{job.id}/retry runs it again"
