"""/v1/jobs/{id}/events: a job's history."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.api import examples
from service.api.described import answer
from service.api.jobs import JobId
from service.api.present import event_view
from service.api.problems import documented
from service.api.services import Given
from service.api.views import EventPage
from service.errors import DatabaseUnavailableError, JobNotFoundError, ParameterInvalidError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/events",
    responses={
        200: answer(examples.EVENT_PAGE, "Events in order"),
        **documented(JobNotFoundError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_events(
    job_id: JobId,
    given: Given,
    after: Annotated[int, Query(ge=0, le=2**53, description="An event's id.", examples=[0])] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, examples=[100])] = 100,
) -> EventPage:
    """Read what happened to a job, in order, beyond the event `after`."""
    events = given.events(job_id, after, limit)
    return EventPage(
        events=[event_view(event) for event in events],
        next_after=events[-1].id if events else after,
    )
