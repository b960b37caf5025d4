"""From the tables' rows to the queue's records; ids, and the cursors of pages."""

import base64
import json
import logging
import re
import secrets
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from service.errors import CursorInvalidError, JobNotFoundError, JobUnreadableError
from service.queue.job import AnySpec, Attempt, Desired, Event, Job, Kind, State
from service.queue.tables import attempts, jobs
from workers.attempt import Reason
from workers.search_specs import TRUSTED

logger = logging.getLogger(__name__)

ID = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH_2020 = 1_577_836_800

ATTEMPT_COLUMNS = [c for c in attempts.c if c.name != "job_id"]
JOB = select(jobs, *(c.label(f"attempt_{c.name}") for c in ATTEMPT_COLUMNS)).outerjoin(
    attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
)
"""Jobs, each with its current attempt."""
SHOWN = jobs.c.desired != Desired.DELETE
"""What is to be deleted is found no more."""


def get_job(
    connection: Connection,
    job_id: str,
    *,
    owner: str | None = None,
    lock: bool = False,
    hidden: bool = False,
) -> Job:
    """One job with its current attempt. Raises JobNotFoundError.

    Args:
        connection: Within a transaction, if the job is to be locked.
        job_id: As it came from a user.
        owner: Whose it must be: another one's is not there. None asks for nobody's in particular.
        lock: Keep others from changing it.
        hidden: Also find what is to be deleted.
    """
    query = JOB.where(jobs.c.id == job_id)
    if not hidden:
        query = query.where(SHOWN)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if lock:  # SQLite has no FOR UPDATE, and no need: BEGIN IMMEDIATE lets one writer in
        query = query.with_for_update(of=jobs)
    row = connection.execute(query).one_or_none() if ID.fullmatch(job_id) else None
    if row is None:
        raise JobNotFoundError(f"there is no job {job_id[:40]!r}")
    return job_of(row)


def readable(rows: Iterable[Row[Any]]) -> list[Job]:
    """Without jobs whose specification needs a package that is gone: the others must go on.

    A process looks for packages once, so what it could not read it does not try again.
    """
    found = []
    for row in rows:
        known = row.id, hash(row.spec)
        if known in _unreadable:
            continue
        try:
            found.append(job_of(row))
        except JobUnreadableError:
            _unreadable.add(known)
            logger.exception("a job is left out")
    return found


_unreadable: set[tuple[str, int]] = set()


def job_of(row: Row[Any]) -> Job:
    """A row of `JOB`. Raises JobUnreadableError."""
    try:
        spec = _parsed(row.kind, row.spec)
    except ValueError as error:  # also a kind, or a specification, of a later release
        raise JobUnreadableError(f"job {row.id}: {error}") from error
    return Job(
        id=row.id,
        spec=spec,
        desired=Desired(row.desired),
        state=State(row.state),
        attempt=row.attempt,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        not_before=row.not_before,
        reason=Reason(row.reason) if row.reason else None,
        evidence=row.evidence,
        waiting_reason=row.waiting_reason,
        errors=row.errors,
        losses=row.losses,
        experiment_id=row.experiment_id,
        run_id=row.run_id,
        run_closed=row.run_closed,
        result=json.loads(row.result) if row.result else None,
        retry_through=row.retry_through,
        owner=row.owner,
        current=_current(row),
    )


def attempt_of(row: Row[Any]) -> Attempt:
    """A row of `attempts`."""
    return Attempt(**_with_reasons(row._mapping))


def event_of(row: Row[Any]) -> Event:
    """A row of `events`."""
    return Event(**{**row._mapping, "data": json.loads(row.data)})


def _current(row: Row[Any]) -> Attempt | None:
    if row.attempt_number is None:
        return None
    fields = {c.name: getattr(row, f"attempt_{c.name}") for c in ATTEMPT_COLUMNS}
    return Attempt(**_with_reasons({"job_id": row.id, **fields}))


def _with_reasons(fields: Any) -> dict[str, Any]:
    reasons = {
        name: Reason(fields[name]) for name in ("reason", "stop_reason") if fields[name] is not None
    }
    return {**fields, **reasons}


@lru_cache(maxsize=512)
def _parsed(kind: str, spec: str) -> AnySpec:
    """A specification never changes, and to validate a search's whole space takes a while."""
    return Kind(kind).spec.model_validate_json(spec, context=TRUSTED)


class _Growing:
    """Numbers of 40 bits of milliseconds and 20 random ones; each is above the one before.

    Only a clock that was set back by more than `SET_BACK_MS` begins anew: less is also how far
    threads overtake each other between reading the clock and coming here.
    """

    SET_BACK_MS = 1000

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def next(self, moment_ms: int) -> int:
        """A number of this millisecond, or of a later one where this one's are used up."""
        with self._lock:
            ahead = (self._last >> 20) - moment_ms
            if 0 <= ahead <= self.SET_BACK_MS:
                # A random step: other processes that took the same number part from this one.
                self._last += 1 + secrets.randbits(6)
            else:
                self._last = (moment_ms << 20) | secrets.randbits(20)
            return self._last


_numbers = _Growing()


def new_id(now: float) -> str:
    """8 characters of milliseconds since 2020, then 4 random ones: sorts by age until 2054.

    Those that one process makes sort in their order, also within a millisecond.
    """
    number = _numbers.next(int((now - _EPOCH_2020) * 1000))
    return "".join(_DIGITS[(number >> shift) & 31] for shift in range(55, -1, -5))


def new_ids(now: float, count: int) -> list[str]:
    """Several ids of one moment, in their order."""
    return [new_id(now) for _ in range(count)]


def encode_cursor(job_id: str) -> str:
    """Where a page ended."""
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> str:
    """Raises CursorInvalidError."""
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise CursorInvalidError from None
    if not ID.fullmatch(job_id):
        raise CursorInvalidError
    return job_id
