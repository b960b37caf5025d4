"""What is asked of a search that exists: cancel, pause, resume, retry-failed, delete."""

from fastapi import APIRouter, Response

from service.api import search_examples as examples
from service.api.described import answer
from service.api.problems import documented
from service.api.search_views import SearchView
from service.api.searches import SearchId, present
from service.api.services import Given
from service.api.steering import delete, reopened, steered
from service.errors import (
    DatabaseUnavailableError,
    JobActiveError,
    JobConflictError,
    JobEndedError,
    NothingToRetryError,
    SearchNotFoundError,
)
from service.queue.job import Desired

router = APIRouter(prefix="/v1/searches", tags=["searches"])

_STEERED = documented(SearchNotFoundError, JobEndedError, DatabaseUnavailableError)


@router.post(
    "/{search_id}/cancel",
    status_code=202,
    responses={
        202: answer(examples.CANCELLING, "The search will end: look at its `state`"),
        **_STEERED,
    },
)
def cancel_search(search_id: SearchId, given: Given) -> SearchView:
    """End a search: its trials are stopped, what is finished stays. Idempotent."""
    return _steered(given, search_id, Desired.CANCEL)


@router.post(
    "/{search_id}/pause",
    status_code=202,
    responses={
        202: answer(examples.PAUSING, "The search will leave its places: look at its `state`"),
        **_STEERED,
    },
)
def pause_search(search_id: SearchId, given: Given) -> SearchView:
    """Have all trials leave checkpoints and free their places, until resumed. Idempotent."""
    return _steered(given, search_id, Desired.PAUSE)


@router.post(
    "/{search_id}/resume",
    status_code=202,
    responses={
        202: answer(examples.ACCEPTED, "The search is queued again, or goes on as it was"),
        **_STEERED,
    },
)
def resume_search(search_id: SearchId, given: Given) -> SearchView:
    """Let a paused search go on; one that is not paused stays as it is."""
    return _steered(given, search_id, Desired.RUN)


@router.post(
    "/{search_id}/retry-failed",
    status_code=202,
    responses={
        202: answer(examples.ACCEPTED, "The search is queued again"),
        **documented(
            SearchNotFoundError, NothingToRetryError, JobConflictError, DatabaseUnavailableError
        ),
    },
)
def retry_failed(search_id: SearchId, given: Given) -> SearchView:
    """Run what failed or was cut off of an ended search again; what succeeded stays as it is."""
    job = reopened(given, given.search(search_id))
    given.wake()
    return present(given, job)


@router.delete(
    "/{search_id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "The search, its trials and files are forgotten; MLflow's runs stay"},
        **documented(
            SearchNotFoundError, JobActiveError, JobConflictError, DatabaseUnavailableError
        ),
    },
)
def delete_search(search_id: SearchId, given: Given) -> None:
    """Forget a search that has ended, with all its trials. Its runs in MLflow stay.

    Refused while a job that has not ended begins from one of its checkpoints.
    """
    delete(given, given.search(search_id).id)


def _steered(given: Given, search_id: str, desired: Desired) -> SearchView:
    return present(given, steered(given, given.search(search_id).id, desired))
