"""Errors as RFC 9457 problems: one shape for all that goes wrong, and no internals in it."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from service.api import examples
from service.api.fields import pointer, scalar
from service.api.views import FieldProblem, Problem
from service.errors import CapsError, FieldError, ParameterInvalidError
from service.queue.engine import outage

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
UNAUTHORIZED = 401
CHALLENGE = "Bearer"
"""By what a caller shows who they are."""
UNAVAILABLE = 503
RETRY_AFTER_S = 2
"""A database that was killed is back within about this time."""

Handler = Callable[[Request, Any], Awaitable[Response]]


def problem(error: CapsError, request_id: str | None = None) -> Problem:
    """The problem that tells of `error`."""
    return Problem(
        type=f"urn:capsnet:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        errors=[FieldProblem(**vars(field)) for field in error.errors],
        hint=error.hint,
        request_id=request_id,
    )


def problem_response(content: Problem, headers: dict[str, str] | None = None) -> Response:
    """The answer that carries a problem; of what passes by itself it tells when to ask again."""
    body = content.model_dump_json(exclude_none=True)
    if content.status == UNAUTHORIZED:
        headers = {"WWW-Authenticate": CHALLENGE, **(headers or {})}
    if content.status == UNAVAILABLE:
        headers = {"Retry-After": str(RETRY_AFTER_S), **(headers or {})}
    return Response(body, content.status, headers, media_type=MEDIA_TYPE)


def internal_problem(request_id: str | None) -> Problem:
    """What is told of an error that nobody foresaw: nothing but where to look."""
    return Problem(
        type="urn:capsnet:problem:internal",
        title="Internal error",
        status=500,
        detail="the service failed on this request; its log tells more under the request id",
        code="internal",
        request_id=request_id,
    )


def documented(*errors: type[CapsError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the problems that a route answers with."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in errors:
        example = problem(kind(), "0f8c2d4b7a91").model_dump(mode="json", exclude_none=True)
        if kind.status == 422:
            example["errors"] = examples.FIELD_ERRORS
        content = found.setdefault(kind.status, {"description": kind.title, "content": {}})
        if kind.status in _HEADERS:
            content["headers"] = _HEADERS[kind.status]
        media = content["content"].setdefault(
            MEDIA_TYPE, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        )
        media["examples"][kind.code] = {"value": example}
    return found


_HEADERS: dict[int, dict[str, Any]] = {
    UNAUTHORIZED: {
        "WWW-Authenticate": {
            "description": "How a token is sent.",
            "schema": {"type": "string", "example": CHALLENGE},
        }
    },
    UNAVAILABLE: {
        "Retry-After": {
            "description": "Seconds after which to ask again.",
            "schema": {"type": "integer", "example": RETRY_AFTER_S},
        }
    },
}


def install(app: FastAPI) -> None:
    """Answer every error with a problem."""
    app.add_exception_handler(CapsError, _caps_error)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(SQLAlchemyError, _database_error)


async def _caps_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CapsError)
    return problem_response(problem(error, _request_id(request)))


async def _bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [
        FieldError(pointer(line["loc"]), str(line["msg"])[:500], scalar(line.get("input")))
        for line in error.errors()
    ]
    return problem_response(problem(ParameterInvalidError(errors=fields), _request_id(request)))


async def _database_error(request: Request, error: Exception) -> Response:
    """An outage is told as such; a fault of ours goes on, to become an internal problem."""
    assert isinstance(error, SQLAlchemyError)
    told = outage(error)
    if told is None:
        raise error
    logger.warning("%s: %s", told.detail, str(error).partition("\n")[0][:300])
    return problem_response(problem(told, _request_id(request)))


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such route, no such method."""
    assert isinstance(error, HTTPException)
    code = {404: "route-not-found", 405: "method-not-allowed"}.get(error.status_code, "http-error")
    content = Problem(
        type=f"urn:capsnet:problem:{code}",
        title=str(error.detail),
        status=error.status_code,
        detail=f"{request.method} {request.url.path[:200]}: {error.detail}",
        code=code,
        hint="GET /openapi.json lists the routes",
        request_id=_request_id(request),
    )
    return problem_response(content, dict(error.headers or {}))


def _request_id(request: Request) -> str | None:
    return getattr(request.state, "request_id", None)
