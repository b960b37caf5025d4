"""/v1/jobs/{id}/logs: what the worker printed, by byte offset.

The offset makes reading resumable, and Caps-Log-End tells the end of the log from a pause in it.
"""

import codecs
import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from service.api import examples
from service.api.jobs import JobId
from service.api.problems import documented
from service.api.services import Given
from service.errors import (
    AttemptNotFoundError,
    DatabaseUnavailableError,
    JobNotFoundError,
    ParameterInvalidError,
)
from service.queue.job import Job, State
from workers.attempt import AttemptFolder

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_CHUNK = 1024 * 1024


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


LOG_ANSWER = {
    "description": "The log from `offset` on; characters are never cut",
    "content": {"text/plain": {"schema": {"type": "string"}, "example": examples.LOG}},
    "headers": {
        "Caps-Log-Attempt": _header("The attempt whose log this is", "1"),
        "Caps-Log-Offset": _header("Where to read on", "62"),
        "Caps-Log-End": _header("`true` when this attempt writes no more", "false"),
    },
}
Attempt = Annotated[
    int | None, Query(ge=1, le=2**31, description="The current one if left out.", examples=[1])
]
Offset = Annotated[int, Query(ge=0, le=2**53, description="In bytes.", examples=[0])]
Limit = Annotated[int, Query(ge=4, le=MAX_CHUNK, description="Bytes.", examples=[65536])]


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={
        200: LOG_ANSWER,
        **documented(
            JobNotFoundError, AttemptNotFoundError, ParameterInvalidError, DatabaseUnavailableError
        ),
    },
)
def read_log(
    job_id: JobId,
    given: Given,
    attempt: Attempt = None,
    offset: Offset = 0,
    limit: Limit = 256 * 1024,
) -> Response:
    """Read the log of an attempt."""
    job = given.job(job_id)
    number = job.attempt if attempt is None else attempt
    if number > job.attempt:
        raise AttemptNotFoundError(f"job {job.id} has {job.attempt} attempts, not {number}")
    log = AttemptFolder(given.settings.storage_root, job.id, number).log
    return log_response(log, number, offset, limit, over=_over(job, number))


def log_response(log: Path, attempt: int, offset: int, limit: int, *, over: bool) -> Response:
    """Some of the log of an attempt, which writes no more if it is `over`."""
    content, at_end = _read(log, offset, limit, whole=over)
    headers = {
        "Caps-Log-Attempt": str(attempt),
        "Caps-Log-Offset": str(offset + len(content)),
        "Caps-Log-End": "true" if over and at_end else "false",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, headers=headers, media_type="text/plain")


def _over(job: Job, attempt: int) -> bool:
    """Whether the attempt writes no more; the job was read before its log."""
    if job.state.terminal or attempt < job.attempt:
        return True
    return attempt > 0 and job.state is not State.RUNNING


def _read(log: Path, offset: int, limit: int, *, whole: bool) -> tuple[bytes, bool]:
    """Some of the log, and whether it ends there. A character that is not whole yet is left."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            content = file.read(limit)
            at_end = not file.read(1)
    except FileNotFoundError:
        return b"", True
    except OSError:
        logger.warning("%s can't be read", log, exc_info=True)
        return b"", True
    if not (whole and at_end):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(content)
        content = content[: len(content) - len(decoder.getstate()[0])]
    return content, at_end
