"""How a specification becomes a queued job: once for each key, and only what could ever run."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import Depends, Header, Response

from service.api.parsing import invalid_spec
from service.api.services import ForCaller
from service.errors import (
    CapsError,
    FieldError,
    JobDeletedError,
    JobNotFoundError,
    KeyReusedError,
    ParameterInvalidError,
    SpecInvalidError,
)
from service.queue.adding import Submitted
from service.queue.job import AnySpec, Job
from workers.specs import InitFrom

REPLAYED = "Idempotent-Replayed"
LONGEST_KEY = 255
JOBS_FOLDER = "jobs"
"""Of CAPS_STORAGE: in it each job has a folder of its own."""

KEY_ERRORS: tuple[type[CapsError], ...] = (ParameterInvalidError, KeyReusedError, JobDeletedError)


async def _key(
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Any text of your own: the same key and specification are accepted once, "
            "however often they are sent.",
            examples=["nightly-2026-11-22"],
            json_schema_extra={"minLength": 1, "maxLength": LONGEST_KEY},
        ),
    ] = None,
) -> str | None:
    if key is None or (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        return key
    raise ParameterInvalidError(
        "the Idempotency-Key can't be used",
        hint="a UUID or the name of the run will do",
        errors=[
            FieldError(
                "/header/Idempotency-Key",
                f"has {len(key)} characters" if key.isascii() else "is not ASCII",
                accepted=f"1 to {LONGEST_KEY} printable ASCII characters",
            )
        ],
    )


IdempotencyKey = Annotated[str | None, Depends(_key)]


def queued(
    given: ForCaller,
    spec: AnySpec,
    key: str | None,
    response: Response,
    check: Callable[[], None],
    request: str | None = None,
) -> Job:
    """Queue what was submitted, or find what this key has queued before.

    By `request` a repetition is known; it is the specification, where nothing else was asked for.

    `check` refuses what can't run, but nothing that this key has queued before: the answer to a
    repeated submission is that of the first time, whatever has become of the cluster meanwhile.
    """
    try:
        check()
    except CapsError:
        asked = request or spec.model_dump_json()
        known = None if key is None else given.submitted_before(key, asked)
        if known is None:
            raise
        submitted = Submitted(known, replayed=True)
    else:
        submitted = given.submit(spec, key, request)
    if submitted.replayed:
        response.headers[REPLAYED] = "true"
    else:
        given.wake()
    return submitted.job


def check_origin(
    given: ForCaller, source: InitFrom | None, pointer: str, hint: str | None = None
) -> None:
    """Refuse to continue from a job that does not exist: the worker would tell only later."""
    if source is None:
        return
    if source.path is not None:
        _check_path(given, source.path, f"{pointer}/path", hint)
        return
    assert source.job is not None
    try:
        given.job(source.job)
    except JobNotFoundError as error:
        lists = "GET /v1/jobs or `capsctl jobs` lists the jobs"
        wrong = FieldError(f"{pointer}/job", error.detail, source.job, "the id of a job", lists)
        raise invalid_spec([wrong], 1, hint) from None


def _check_path(given: ForCaller, path: str, pointer: str, hint: str | None) -> None:
    """Whoever may not see a job takes no checkpoint out of its folder either."""
    folders = PurePosixPath(path).parts
    if given.caller.sees_only is None or folders[0] != JOBS_FOLDER:
        return
    try:
        given.job(folders[1])
    except JobNotFoundError as error:
        accepted = f"a checkpoint of a job of yours, or one outside of `{JOBS_FOLDER}/`"
        wrong = FieldError(pointer, error.detail, path, accepted)
        raise invalid_spec([wrong], 1, hint) from None


def check_room(given: ForCaller, spec: AnySpec, pointer: str) -> None:
    """Refuse what the cluster could not even hold if it were empty."""
    wrong = given.capacity.never_fits(spec, pointer)
    if wrong:
        raise SpecInvalidError(
            "it asks for more than the cluster has, and would wait for ever",
            hint="lower the resources, or start a node that has them; where nodes join by "
            "themselves, CAPS_ELASTIC=true lets such jobs wait",
            errors=wrong,
        )
