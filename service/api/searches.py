"""/v1/searches: submit, preview, list, look, promote."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import ValidationError

from service.api import search_examples as examples
from service.api.body import json_body, optional_json_body
from service.api.described import accepted, answer, body_of
from service.api.fields import explain
from service.api.parameters import FILTERS, Cursor, Filter, Limit, only
from service.api.parsing import SEARCH_HINT, invalid_spec, parse, parse_search
from service.api.problems import documented
from service.api.promotion import Promotion, promoted
from service.api.search_views import SearchPage, SearchView
from service.api.services import Given
from service.api.submitting import KEY_ERRORS, IdempotencyKey, check_origin, check_room, queued
from service.api.views import JobView
from service.errors import (
    BodyInvalidError,
    BodyTooLargeError,
    CapsError,
    CursorInvalidError,
    DatabaseUnavailableError,
    MediaTypeError,
    NoScoreError,
    ParameterInvalidError,
    SearchNotFoundError,
    SpecInvalidError,
)
from service.queue.job import Job, Kind
from workers.search_preview import SearchPreview, preview
from workers.search_specs import SearchSpec

router = APIRouter(prefix="/v1/searches", tags=["searches"])

SearchId = Annotated[str, Path(description="The search's id.", examples=["6ak4ztb3v1xk"])]

BODY_ERRORS: tuple[type[CapsError], ...] = (
    BodyInvalidError,
    BodyTooLargeError,
    MediaTypeError,
    SpecInvalidError,
)
_SEARCH_BODY = body_of(
    "SearchSpec",
    {
        "routing": {"summary": "12 trials over three fields", "value": examples.SPEC},
        "grid": {"summary": "The paper's 2 x 2 with three seeds", "value": examples.GRID},
    },
)
_PROMOTION_BODY = body_of(
    "Promotion",
    {"longer": {"summary": "The best one for 30 epochs", "value": examples.PROMOTION}},
    required=False,
)


@router.post(
    "",
    status_code=202,
    openapi_extra=_SEARCH_BODY,
    responses={
        202: accepted(examples.ACCEPTED, "Accepted: the search is queued"),
        **documented(*BODY_ERRORS, *KEY_ERRORS, DatabaseUnavailableError),
    },
)
def submit_search(
    body: Annotated[bytes, Depends(json_body)],
    given: Given,
    response: Response,
    key: IdempotencyKey,
) -> SearchView:
    """Queue a search. The whole space is validated before anything runs."""
    spec = parse_search(body)

    def check() -> None:
        check_origin(given, spec.base.init_from, "/base/init_from", SEARCH_HINT)
        check_room(given, spec, "/base/resources")

    job = queued(given, spec, key, response, check)
    view = present(given, job)
    response.headers["Location"] = view.links.self
    return view


@router.post(
    "/preview",
    openapi_extra=_SEARCH_BODY,
    responses={
        200: answer(examples.PREVIEW, "What the search amounts to"),
        **documented(*BODY_ERRORS),
    },
)
def preview_search(body: Annotated[bytes, Depends(json_body)], given: Given) -> SearchPreview:
    """Tell what a search would amount to; nothing is queued."""
    spec = parse_search(body)
    check_origin(given, spec.base.init_from, "/base/init_from", SEARCH_HINT)
    try:
        return preview(spec)
    except ValidationError as error:  # it looks at more configurations than the validation
        fields = explain(error, spec.model_dump(mode="json", by_alias=True), SearchSpec)
        raise invalid_spec(fields, error.error_count(), SEARCH_HINT) from None


@router.get(
    "",
    dependencies=[Depends(only(*FILTERS))],
    responses={
        200: answer(examples.PAGE, "A page of searches, the newest first"),
        **documented(CursorInvalidError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_searches(
    given: Given, filter: Filter, cursor: Cursor = None, limit: Limit = 50
) -> SearchPage:
    """List searches, the newest first; pages stay stable while searches are added."""
    page = given.jobs(replace(filter, kinds=(Kind.SEARCH,)), cursor, limit)
    presenter = given.search_presenter(page.jobs)
    found = [presenter.item(job) for job in page.jobs]
    return SearchPage(searches=found, next_cursor=page.next_cursor)


@router.get(
    "/{search_id}",
    responses={
        200: answer(examples.SEARCH, "The search"),
        **documented(SearchNotFoundError, DatabaseUnavailableError),
    },
)
def get_search(search_id: SearchId, given: Given) -> SearchView:
    """Look at a search: state, how many trials are where, the best configuration."""
    return present(given, given.search(search_id))


@router.post(
    "/{search_id}/promote",
    status_code=202,
    openapi_extra=_PROMOTION_BODY,
    responses={
        202: accepted(examples.PROMOTED, "Accepted: a training job is queued"),
        **documented(
            SearchNotFoundError,
            NoScoreError,
            *BODY_ERRORS,
            *KEY_ERRORS,
            DatabaseUnavailableError,
        ),
    },
)
def promote(
    search_id: SearchId,
    body: Annotated[bytes, Depends(optional_json_body)],
    given: Given,
    response: Response,
    key: IdempotencyKey,
) -> JobView:
    """Queue a full training job from the best configuration, or from the one that is named."""
    search = given.search(search_id)
    promotion = parse(body, Promotion, hint="all fields may be left out")
    spec = promoted(search, given.trials(search), promotion)

    def check() -> None:
        check_origin(given, spec.init_from, "/set/init_from")
        check_room(given, spec, "/set/resources")

    # The best configuration may be another one by the time of a repetition.
    asked = f"promote {search.id} {promotion.model_dump_json()}"
    job = queued(given, spec, key, response, check, asked)
    view = given.presenter([job]).job(job)
    response.headers["Location"] = view.links.self
    return view


def present(given: Given, job: Job) -> SearchView:
    """The view of one search."""
    return given.search_presenter([job]).search(job, given.trials(job))
