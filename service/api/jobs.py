"""/v1/jobs: submit, list, look, cancel."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api import examples
from service.api.body import json_body
from service.api.described import accepted, answer, body_of
from service.api.parameters import FILTERS, Cursor, Filter, Limit, only
from service.api.parsing import invalid_spec, parse_spec
from service.api.problems import documented
from service.api.services import Given
from service.api.views import JobPage, JobView
from service.errors import (
    BodyInvalidError,
    BodyTooLargeError,
    CursorInvalidError,
    DatabaseUnavailableError,
    FieldError,
    JobEndedError,
    JobNotFoundError,
    MediaTypeError,
    ParameterInvalidError,
    SpecInvalidError,
)
from service.queue.job import Desired, Job, Kind
from workers.specs import InitFrom

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
    openapi_extra=_SPEC_BODY,
    responses={
        202: accepted(examples.ACCEPTED, "Accepted: the job is queued; Location is its address"),
        **documented(
            BodyInvalidError,
            BodyTooLargeError,
            MediaTypeError,
            SpecInvalidError,
            DatabaseUnavailableError,
        ),
    },
)
def submit(body: Annotated[bytes, Depends(json_body)], given: Given, response: Response) -> JobView:
    """Queue a training job. Fields left out have the paper's values."""
    spec = parse_spec(body)
    check_origin(given, spec.init_from, "/init_from")
    job = given.store.add(spec)
    given.wake()
    view = _present(given, job)
    response.headers["Location"] = view.links.self
    return view


@router.get(
    "",
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
) -> JobPage:
    """List jobs of all kinds, the newest first; pages stay stable while jobs are added."""
    page = given.store.list(replace(filter, kinds=tuple(kind)), cursor, limit)
    presenter = given.presenter(page.jobs)
    return JobPage(jobs=[presenter.item(job) for job in page.jobs], next_cursor=page.next_cursor)


@router.get(
    "/{job_id}",
    responses={
        200: answer(examples.JOB, "The job"),
        **documented(JobNotFoundError, DatabaseUnavailableError),
    },
)
def get_job(job_id: JobId, given: Given) -> JobView:
    """Look at a job of any kind: state, progress, result, its MLflow run."""
    return _present(given, given.store.get(job_id))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    responses={
        202: answer(examples.CANCELLING, "The job will end: look at its `state`"),
        **documented(JobNotFoundError, JobEndedError, DatabaseUnavailableError),
    },
)
def cancel_job(job_id: JobId, given: Given) -> JobView:
    """End a job: it leaves a checkpoint, then its processes are stopped. Idempotent."""
    job = given.store.set_desired(job_id, Desired.CANCEL)
    given.wake()
    return _present(given, job)


def check_origin(
    given: Given, source: InitFrom | None, pointer: str, hint: str | None = None
) -> None:
    """Refuse to continue from a job that does not exist: the worker would tell only later."""
    if source is None or source.job is None:
        return
    try:
        given.store.get(source.job)
    except JobNotFoundError as error:
        lists = "GET /v1/jobs or `capsctl jobs` lists the jobs"
        wrong = FieldError(f"{pointer}/job", error.detail, source.job, "the id of a job", lists)
        raise invalid_spec([wrong], 1, hint) from None


def _present(given: Given, job: Job) -> JobView:
    return given.presenter([job]).job(job)
