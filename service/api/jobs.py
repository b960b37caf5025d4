"""/v1/jobs: submit, list, look."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api import examples
from service.api.body import json_body
from service.api.described import accepted, answer, body_of
from service.api.parameters import FILTERS, Cursor, Filter, Limit, only
from service.api.parsing import parse_spec
from service.api.problems import documented
from service.api.rendered import rendered
from service.api.services import Given
from service.api.submitting import KEY_ERRORS, IdempotencyKey, check_origin, check_room, queued
from service.api.views import JobPage, JobView
from service.errors import (
    BodyInvalidError,
    BodyTooLargeError,
    CursorInvalidError,
    DatabaseUnavailableError,
    JobNotFoundError,
    MediaTypeError,
    ParameterInvalidError,
    SpecInvalidError,
)
from service.queue.job import Job, Kind

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="The job's id.", examples=["6ak2kq782ntq"])]

_SPEC_BODY = body_of(
    "TrainSpec",
    {
        "demo": {"summary": "A thin CapsNet on 5,000 digits", "value": examples.SPEC},
        "paper": {"summary": "The paper's net on MNIST", "value": {"name": "paper"}},
    },
)


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    openapi_extra=_SPEC_BODY,
    responses={
        202: accepted(examples.ACCEPTED, "Accepted: the job is queued; Location is its address"),
        **documented(
            BodyInvalidError,
            BodyTooLargeError,
            MediaTypeError,
            SpecInvalidError,
            *KEY_ERRORS,
            DatabaseUnavailableError,
        ),
    },
)
def submit(
    body: Annotated[bytes, Depends(json_body)],
    given: Given,
    response: Response,
    key: IdempotencyKey,
) -> Response:
    """Queue a training job. Fields left out have the paper's values."""
    spec = parse_spec(body)

    def check() -> None:
        check_origin(given, spec.init_from, "/init_from")
        check_room(given, spec, "/resources")

    job = queued(given, spec, key, response, check)
    view = _present(given, job)
    response.headers["Location"] = view.links.self
    return rendered(view, 202, response.headers)


@router.get(
    "",
    response_model=JobPage,
    dependencies=[Depends(only(*FILTERS, "kind"))],
    responses={
        200: answer(examples.JOB_PAGE, "A page of jobs, the newest first"),
        **documented(CursorInvalidError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_jobs(
    given: Given,
    filter: Filter,
    kind: Annotated[
        list[Kind], Query(max_length=10, description="Repeated: any.", examples=["train"])
    ] = [],  # noqa: B006 - FastAPI copies defaults
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """List jobs of all kinds, the newest first; pages stay stable while jobs are added."""
    page = given.jobs(replace(filter, kinds=tuple(kind)), cursor, limit)
    presenter = given.presenter(page.jobs)
    jobs = [presenter.item(job) for job in page.jobs]
    return rendered(JobPage(jobs=jobs, next_cursor=page.next_cursor))


@router.get(
    "/{job_id}",
    responses={
        200: answer(examples.JOB, "The job"),
        **documented(JobNotFoundError, DatabaseUnavailableError),
    },
)
def get_job(job_id: JobId, given: Given) -> JobView:
    """Look at a job of any kind: state, progress, result, its MLflow run."""
    return _present(given, given.job(job_id))


def _present(given: Given, job: Job) -> JobView:
    return given.presenter([job]).job(job)
