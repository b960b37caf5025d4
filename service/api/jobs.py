"""/v1/jobs: submit, list, look, cancel."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from service.api import examples
from service.api.body import json_body
from service.api.parsing import parse_spec
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
from service.queue.job import Desired, Job, State
from service.queue.store import JobFilter
from workers.specs import TrainSpec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="The job's id.", examples=["6ak2kq782ntq"])]
Label = Annotated[str, Query(pattern=r"^[^=\x00]{1,63}=[^\x00]{0,200}$")]

_SPEC_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/TrainSpec"},
                "examples": {
                    "demo": {"summary": "A thin CapsNet on 5,000 digits", "value": examples.SPEC},
                    "paper": {"summary": "The paper's net on MNIST", "value": {"name": "paper"}},
                },
            }
        },
    }
}


def answer(example: Any, description: str) -> dict[str, Any]:
    """The OpenAPI entry of a JSON answer."""
    content = {"application/json": {"example": example}}
    return {"description": description, "content": content}


LIST_PARAMETERS = ("experiment", "label", "state", "cursor", "limit")


def known_parameters(request: Request) -> None:
    """Refuse a parameter that would silently be ignored, and with it the filter that was meant."""
    unknown = [name for name in request.query_params if name not in LIST_PARAMETERS]
    if unknown:
        accepted = f"one of {', '.join(LIST_PARAMETERS)}"
        raise ParameterInvalidError(
            f"unknown parameter {unknown[0][:100]!r}",
            errors=[
                FieldError(f"/query/{n[:100]}", "unknown parameter", accepted=accepted)
                for n in unknown
            ],
        )


@router.post(
    "",
    status_code=202,
    openapi_extra=_SPEC_BODY,
    responses={
        202: answer(examples.ACCEPTED, "Accepted: the job is queued; Location is its address")
        | {"headers": {"Location": {"schema": {"type": "string"}, "example": "/v1/jobs/6ak2"}}},
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
    _check_origin(given, spec)
    job = given.store.add(spec)
    given.wake()
    view = _present(given, job)
    response.headers["Location"] = view.links.self
    return view


@router.get(
    "",
    dependencies=[Depends(known_parameters)],
    responses={
        200: answer(examples.JOB_PAGE, "A page of jobs, the newest first"),
        **documented(CursorInvalidError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_jobs(
    given: Given,
    experiment: Annotated[
        str | None, Query(max_length=100, pattern=r"^[^\x00]*$", examples=["demo"])
    ] = None,
    label: Annotated[
        list[Label],
        Query(max_length=32, description="`key=value`; repeated: all hold.", examples=["team=a"]),
    ] = [],  # noqa: B006 - FastAPI copies defaults
    state: Annotated[
        list[State], Query(max_length=10, description="Repeated: any.", examples=["RUNNING"])
    ] = [],  # noqa: B006
    cursor: Annotated[str | None, Query(max_length=100, examples=["NmFrMmtxNzgybnRx"])] = None,
    limit: Annotated[int, Query(ge=1, le=200, examples=[50])] = 50,
) -> JobPage:
    """List jobs, the newest first; pages stay stable while jobs are added."""
    labels = {key: value for key, _, value in (text.partition("=") for text in label)}
    page = given.store.list(JobFilter(experiment, labels, tuple(state)), cursor, limit)
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
    """Look at a job: state, progress, result, its MLflow run."""
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


def _check_origin(given: Given, spec: TrainSpec) -> None:
    """Refuse to continue from a job that does not exist: the worker would tell only later."""
    source = spec.init_from
    if source is None or source.job is None:
        return
    try:
        given.store.get(source.job)
    except JobNotFoundError as error:
        hint = "GET /v1/jobs or `capsctl jobs` lists the jobs"
        wrong = FieldError("/init_from/job", error.detail, source.job, "the id of a job", hint)
        raise SpecInvalidError("1 field is not valid", errors=[wrong]) from None


def _present(given: Given, job: Job) -> JobView:
    return given.presenter([job]).job(job)
