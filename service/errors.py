"""Every error that the control plane raises on purpose; its docstring is its default message.

CapsError
├── RequestError                    the caller can mend it
│   ├── BodyInvalidError            400
│   ├── HostRefusedError            400
│   ├── CursorInvalidError          400
│   ├── TokenMissingError           401
│   ├── TokenInvalidError           401
│   ├── ScopeMissingError           403
│   ├── BodyTooLargeError           413
│   ├── MediaTypeError              415
│   ├── KeyReusedError              422
│   ├── ParameterInvalidError       422
│   ├── SpecInvalidError            422
│   └── InputError                  422, what was typed or set; never leaves the client
├── JobNotFoundError                404
│   ├── AttemptNotFoundError        404
│   ├── JobDeletedError             410
│   ├── SearchNotFoundError         404
│   └── TrialNotFoundError          404
├── TokenNotFoundError              404
├── JobConflictError                409
│   ├── JobEndedError               409
│   ├── JobActiveError              409
│   ├── NothingToRetryError         409
│   ├── NoScoreError                409
│   └── StaleJobError               409
├── JobUnreadableError              500
├── UnavailableError                503, a part of the service does not answer
│   ├── DatabaseUnavailableError    503
│   ├── DatabaseFullError           507
│   ├── ClusterUnavailableError     503
│   └── TrackingUnavailableError    503
└── StackError                      `capsctl up` and `down`; never leaves the command line
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import ClassVar

Scalar = str | int | float | bool


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field of a document."""

    pointer: str
    """JSON pointer (RFC 6901) to the field, "" for the whole document."""
    detail: str
    value: Scalar | None = None
    """What was given, when that is a short scalar."""
    accepted: str | None = None
    hint: str | None = None


class CapsError(Exception):
    """The control plane can't do this."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Error"
    hint: str | None = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        hint: str | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        self.detail = detail or cleandoc(type(self).__doc__ or "")
        self.errors = tuple(errors)
        if hint is not None:
            self.hint = hint
        super().__init__(self.detail)


class RequestError(CapsError):
    """The request can't be understood."""

    code = "request-invalid"
    status = 400
    title = "Bad request"


class BodyInvalidError(RequestError):
    """The body is not valid JSON."""

    code = "body-invalid"
    title = "Body is not JSON"
    hint = "send one JSON object in UTF-8; `capsctl schema` prints its JSON Schema"


class HostRefusedError(RequestError):
    """The Host header names no host that this API answers for."""

    code = "host-refused"
    title = "Host refused"
    hint = "add the host name to CAPS_ALLOWED_HOSTS"


class CursorInvalidError(RequestError):
    """The cursor is none that this API gave out."""

    code = "cursor-invalid"
    title = "Unknown cursor"
    hint = "pass `next_cursor` of the page before, unchanged, or leave it out"


class TokenMissingError(RequestError):
    """This API asks for a token, and none came with the request."""

    code = "token-missing"
    status = 401
    title = "Token missing"
    hint = "send `Authorization: Bearer TOKEN`; capsctl and CapsClient take it from CAPS_TOKEN"


class TokenInvalidError(RequestError):
    """The token is not valid: it is unknown, has expired or was revoked."""

    code = "token-invalid"
    status = 401
    title = "Token invalid"
    hint = (
        "`capsctl token create`, with the token of an administrator, makes another one; capsctl "
        "and CapsClient take it from CAPS_TOKEN"
    )


class ScopeMissingError(RequestError):
    """The token's scope does not allow this: the scope `submit` is needed."""

    code = "scope-missing"
    status = 403
    title = "Scope missing"
    hint = (
        "an administrator makes such a token by `capsctl token create --scope submit`; capsctl "
        "and CapsClient take it from CAPS_TOKEN"
    )


class BodyTooLargeError(RequestError):
    """The body is larger than 256 KB."""

    code = "body-too-large"
    status = 413
    title = "Body too large"
    hint = "a specification takes a few kilobytes; data and checkpoints belong in CAPS_STORAGE"


class MediaTypeError(RequestError):
    """The body must be JSON."""

    code = "media-type"
    status = 415
    title = "Unsupported media type"
    hint = "send the header `Content-Type: application/json`"


class ParameterInvalidError(RequestError):
    """A parameter of the query is out of its range."""

    code = "parameter-invalid"
    status = 422
    title = "Invalid parameter"


class KeyReusedError(RequestError):
    """The Idempotency-Key came with another specification before."""

    code = "idempotency-key-reused"
    status = 422
    title = "Idempotency-Key reused"
    hint = "send a new key with a new specification; the same key repeats the same submission"


class SpecInvalidError(RequestError):
    """The specification is not valid."""

    code = "spec-invalid"
    status = 422
    title = "Invalid specification"
    hint = "`capsctl schema` or GET /v1/schema/train tells every field and its range"


class InputError(RequestError):
    """What was typed or set can't be used."""

    code = "input-invalid"
    status = 422
    title = "Invalid input"


class TokenNotFoundError(CapsError):
    """There is no such token."""

    code = "token-not-found"
    status = 404
    title = "Token not found"
    hint = "`capsctl token list` or GET /v1/tokens lists the tokens"


class JobNotFoundError(CapsError):
    """There is no such job."""

    code = "job-not-found"
    status = 404
    title = "Job not found"
    hint = "`capsctl jobs` or GET /v1/jobs lists the jobs"


class JobDeletedError(JobNotFoundError):
    """The job of this Idempotency-Key was deleted."""

    code = "job-deleted"
    status = 410
    title = "Job deleted"
    hint = "send a new key to run it again"


class AttemptNotFoundError(JobNotFoundError):
    """The job has no such attempt."""

    code = "attempt-not-found"
    title = "Attempt not found"
    hint = "attempts count from 1; the job's `attempt` is the current one"


class SearchNotFoundError(JobNotFoundError):
    """There is no such search."""

    code = "search-not-found"
    title = "Search not found"
    hint = "GET /v1/searches or `capsctl jobs --kind search` lists the searches"


class TrialNotFoundError(JobNotFoundError):
    """The search has no such trial."""

    code = "trial-not-found"
    title = "Trial not found"
    hint = "trials count from 0; GET /v1/searches/{id}/trials lists them"


class JobConflictError(CapsError):
    """The job's state does not allow this."""

    code = "job-conflict"
    status = 409
    title = "Conflict"


class JobEndedError(JobConflictError):
    """The job has ended, or is being cancelled, and can't change any more."""

    code = "job-ended"
    title = "Job has ended"
    hint = "submit a new job; `init_from` continues from this one's checkpoint"


class JobActiveError(JobConflictError):
    """The job has not ended yet."""

    code = "job-active"
    title = "Job has not ended"
    hint = "cancel it first, or wait for its end"


class NothingToRetryError(JobConflictError):
    """No trial of the search has failed."""

    code = "nothing-to-retry"
    title = "Nothing to retry"
    hint = "submit a new search for other configurations"


class NoScoreError(JobConflictError):
    """No trial of the search has a score yet."""

    code = "no-score"
    title = "No score yet"
    hint = "a trial has a score when its first epoch is done; or name a `configuration`"


class StaleJobError(JobConflictError):
    """The job has changed since it was read."""

    code = "job-stale"
    title = "Job has changed"
    hint = "read the job again and repeat"


class JobUnreadableError(CapsError):
    """This release can't read the job's specification."""

    code = "job-unreadable"
    title = "Job unreadable"
    hint = "install the package whose routing, loss or data set the job names"


class UnavailableError(CapsError):
    """A part of the service does not answer."""

    code = "unavailable"
    status = 503
    title = "Unavailable"
    hint = "try again in a moment; GET /readyz tells what does not answer"


class DatabaseUnavailableError(UnavailableError):
    """The queue's database does not answer."""

    code = "database-unavailable"
    title = "Database unavailable"


class DatabaseFullError(UnavailableError):
    """The disk of the queue's database is full: nothing new is accepted, what is there is shown."""

    code = "database-full"
    status = 507
    title = "Database full"
    hint = "make room on the database's disk; jobs that run go on meanwhile"


class ClusterUnavailableError(UnavailableError):
    """The Ray cluster does not answer."""

    code = "cluster-unavailable"
    title = "Cluster unavailable"


class TrackingUnavailableError(UnavailableError):
    """The MLflow server does not answer."""

    code = "tracking-unavailable"
    title = "Tracking unavailable"


class StackError(CapsError):
    """The embedded stack can't be started or stopped."""

    code = "stack"
    title = "Stack"
