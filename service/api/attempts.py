"""/v1/jobs/{id}/attempts: how often a job was tried, and what ended each attempt."""

from fastapi import APIRouter

from service.api import examples
from service.api.described import answer
from service.api.jobs import JobId
from service.api.problems import documented
from service.api.services import Given
from service.api.views import AttemptPage
from service.errors import DatabaseUnavailableError, JobNotFoundError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/attempts",
    responses={
        200: answer(examples.ATTEMPT_PAGE, "The attempts, the first one first"),
        **documented(JobNotFoundError, DatabaseUnavailableError),
    },
)
def list_attempts(job_id: JobId, given: Given) -> AttemptPage:
    """List the attempts of a job: when they ran, from which step they went on, what ended them."""
    presenter = given.presenter([])
    return AttemptPage(attempts=[presenter.attempt(each) for each in given.attempts(job_id)])
