"""The queue's store: every write is one transaction, and holds the event that tells of it.

A change of a job is a compare-and-set on (attempt, version). The attempt fences: whoever still
holds a record of an earlier attempt changes nothing.
"""

import base64
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Row, Select, and_, exists, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from service.errors import (
    CursorInvalidError,
    JobConflictError,
    JobEndedError,
    JobNotFoundError,
    JobUnreadableError,
    StaleJobError,
)
from service.queue.engine import make_engine, writing
from service.queue.job import AnySpec, Attempt, Desired, Event, Job, Kind, State
from service.queue.tables import attempts, clock, events, job_labels, jobs
from workers.attempt import Reason
from workers.search_specs import TRUSTED, SearchSpec

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
TERMINAL = tuple(state for state in State if state.terminal)

Jobs = list[Job]  # names that `Store.list` does not hide
Events = list[Event]

_ID = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH_2020 = 1_577_836_800
_MIGRATION_LOCK = 0x63617073  # "caps", the key of PostgreSQL's advisory lock


@dataclass(frozen=True)
class NewEvent:
    """A line for a job's history."""

    type: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; all conditions hold together."""

    experiment: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    states: tuple[State, ...] = ()
    kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True)
class Page:
    """Some jobs, and where the next ones begin."""

    jobs: list[Job]
    next_cursor: str | None


class Store:
    """Jobs, their attempts and events in a database."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._writer = writing(self.engine)

    def migrate(self) -> None:
        """Bring the schema up to date; several processes may do so at once."""
        config = AlembicConfig()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                lock = text("SELECT pg_advisory_xact_lock(:key)")
                connection.execute(lock, {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    # ------------------------------------------------------------------------------- reading

    def now(self) -> float:
        """The database's clock, in seconds since 1970."""
        with self.engine.connect() as connection:
            return _now(connection)

    def ping(self) -> None:
        """Raise whatever keeps the database from answering."""
        with self.engine.connect() as connection:
            connection.execute(select(jobs.c.id).limit(1))

    def get(self, job_id: str) -> Job:
        """Raises JobNotFoundError."""
        with self.engine.connect() as connection:
            return _get(connection, job_id)

    def list(self, filter: JobFilter, cursor: str | None = None, limit: int = 50) -> Page:
        """A page of jobs, the newest first; jobs that come meanwhile do not shift it."""
        query = _filtered(_JOB, filter).order_by(jobs.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(jobs.c.id < _decode_cursor(cursor))
        rows = self._rows(query)
        more = len(rows) > limit
        return Page(_readable(rows[:limit]), _encode_cursor(rows[limit - 1].id) if more else None)

    def active(self) -> Jobs:
        """Jobs that have not ended: the highest priority first, then the oldest."""
        query = _JOB.where(jobs.c.state.not_in(TERMINAL))
        return _readable(self._rows(query.order_by(jobs.c.priority.desc(), jobs.c.id)))

    def unclosed(self) -> Jobs:
        """Ended jobs whose MLflow run may not carry the final status yet; the oldest first."""
        query = _JOB.where(
            jobs.c.run_closed.is_(False), jobs.c.state.in_(TERMINAL), jobs.c.run_id.is_not(None)
        )
        return _readable(self._rows(query.order_by(jobs.c.id)))

    def positions(self, job_ids: Iterable[str]) -> dict[str, int]:
        """Places in the queue, from 1, of those that are queued."""
        place = func.row_number().over(order_by=(jobs.c.priority.desc(), jobs.c.id))
        queue = (
            select(jobs.c.id, place.label("place"))
            .where(jobs.c.state == State.QUEUED)
            .subquery("queue")
        )
        query = select(queue.c.id, queue.c.place).where(queue.c.id.in_(list(job_ids)))
        with self.engine.connect() as connection:
            return {row.id: row.place for row in connection.execute(query)}

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> Events:
        """A job's history in order, beyond the event `after`."""
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [_event(row) for row in connection.execute(query)]

    # ------------------------------------------------------------------------------- writing

    def add(self, spec: AnySpec) -> Job:
        """Queue a new job."""
        for _ in range(9):
            try:
                with self._writer.begin() as connection:
                    return _add(connection, spec)
            except IntegrityError:  # another job got the same random id in the same millisecond
                continue
        raise RuntimeError("no free job id in 9 tries")

    def set_desired(self, job_id: str, desired: Desired) -> Job:
        """Say what the user wants; a cancel is final. Raises JobNotFoundError, JobEndedError."""
        with self._writer.begin() as connection:
            job = _get(connection, job_id, lock=True)
            if (job.state.terminal and job.state != _ENDS_AS.get(desired)) or (
                job.desired is Desired.CANCEL and desired is not Desired.CANCEL
            ):
                raise JobEndedError(f"job {job.id} is {job.state}: it can't change any more")
            if job.state.terminal or job.desired is desired:
                return job
            event = NewEvent(f"{desired}-requested", f"asked to {desired}")
            return _change(connection, job, event, {"desired": desired})

    def reopen(self, job_id: str) -> Job:
        """Queue an ended search again: all that failed up to now is void.

        Raises JobNotFoundError, JobConflictError where it is no search or has not ended.
        """
        with self._writer.begin() as connection:
            job = _get(connection, job_id, lock=True)
            if job.kind is not Kind.SEARCH:
                raise JobConflictError(f"job {job.id} is a training and has no trials")
            if not job.state.terminal:
                raise JobConflictError(
                    f"search {job.id} is {job.state}",
                    hint="retry-failed is for searches that have ended",
                )
            event = NewEvent("retry-failed", "asked to run the failed trials again")
            changes = {
                "state": State.QUEUED,
                "desired": Desired.RUN,
                "retry_through": job.attempt,
                "reason": None,
                "evidence": "",
                "waiting_reason": "",
                "not_before": None,
                "finished_at": None,
                "errors": 0,
                "losses": 0,
                "run_closed": False,
            }
            return _change(connection, job, event, changes)

    def start_attempt(self, job: Job, event: NewEvent) -> Job:
        """Begin the next attempt: RUNNING, with a row of its own, before Ray hears of it.

        Why the attempt before ended, and what the job waited for, is cleared: it is history.
        """
        number = job.attempt + 1
        with self._writer.begin() as connection:
            attempt = {"job_id": job.id, "number": number, "created_at": clock()}
            changes = {
                "attempt": number,
                "state": State.RUNNING,
                "waiting_reason": "",
                "not_before": None,
                "reason": None,
                "evidence": "",
                "started_at": func.coalesce(jobs.c.started_at, clock()),
            }
            _compare_and_set(connection, job, changes)
            connection.execute(insert(attempts).values(attempt))
            _record(connection, job.id, number, event)
            return _get(connection, job.id)

    def update(
        self,
        job: Job,
        event: NewEvent | None = None,
        attempt: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Job:
        """Change a job that nobody has changed since `job` was read; else StaleJobError.

        Args:
            job: The record as it was read.
            event: The line of history that tells of the change.
            attempt: Changes to the current attempt's row.
            changes: New values of the job's fields.
        """
        with self._writer.begin() as connection:
            return _change(connection, job, event, changes, attempt)

    def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with self.engine.connect() as connection:
            return connection.execute(query).all()


_ENDS_AS = {Desired.CANCEL: State.CANCELLED}

_ATTEMPT_COLUMNS = [c for c in attempts.c if c.name != "job_id"]
_JOB = select(jobs, *(c.label(f"attempt_{c.name}") for c in _ATTEMPT_COLUMNS)).outerjoin(
    attempts, and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
)
_JOB_CHANGES = frozenset(c.name for c in jobs.c) - {
    "id", "kind", "spec", "name", "experiment", "priority", "version", "created_at", "updated_at",
}  # fmt: skip
_ATTEMPT_CHANGES = frozenset(c.name for c in _ATTEMPT_COLUMNS) - {"number", "created_at"}


def _now(connection: Connection) -> float:
    return float(connection.execute(select(clock())).scalar_one())


def _get(connection: Connection, job_id: str, *, lock: bool = False) -> Job:
    query = _JOB.where(jobs.c.id == job_id)
    if lock:  # SQLite has no FOR UPDATE, and no need: BEGIN IMMEDIATE lets one writer in
        query = query.with_for_update(of=jobs)
    row = connection.execute(query).one_or_none() if _ID.fullmatch(job_id) else None
    if row is None:
        raise JobNotFoundError(f"there is no job {job_id[:40]!r}")
    return _job(row)


def _add(connection: Connection, spec: AnySpec) -> Job:
    now = _now(connection)
    job = {
        "id": _new_id(now),
        "kind": Kind.SEARCH if isinstance(spec, SearchSpec) else Kind.TRAIN,
        "name": spec.name,
        "experiment": spec.experiment,
        "priority": spec.priority,
        "spec": spec.model_dump_json(),
        "desired": Desired.RUN,
        "state": State.QUEUED,
        "attempt": 0,
        "version": 1,
        "created_at": now,
        "updated_at": now,
        "evidence": "",
        "waiting_reason": "",
        "errors": 0,
        "losses": 0,
        "run_closed": False,
    }
    connection.execute(insert(jobs).values(_plain(job)))
    if spec.labels:
        labels = [{"job_id": job["id"], "key": k, "value": v} for k, v in spec.labels.items()]
        connection.execute(insert(job_labels), labels)
    _record(connection, str(job["id"]), 0, NewEvent("submitted", f"submitted as {spec.name!r}"))
    return _get(connection, str(job["id"]))


def _change(
    connection: Connection,
    job: Job,
    event: NewEvent | None,
    changes: Mapping[str, Any],
    attempt: Mapping[str, Any] | None = None,
) -> Job:
    if unknown := (changes.keys() - _JOB_CHANGES) | ((attempt or {}).keys() - _ATTEMPT_CHANGES):
        raise ValueError(f"no fields that change: {', '.join(sorted(unknown))}")
    _compare_and_set(connection, job, changes)
    if attempt:
        current = and_(attempts.c.job_id == job.id, attempts.c.number == job.attempt)
        connection.execute(update(attempts).where(current).values(_plain(attempt)))
    if event is not None:
        _record(connection, job.id, job.attempt, event)
    return _get(connection, job.id)


def _compare_and_set(connection: Connection, job: Job, changes: Mapping[str, Any]) -> None:
    values = _plain(changes) | {"version": job.version + 1, "updated_at": clock()}
    if values.get("result") is not None:
        values["result"] = json.dumps(values["result"])
    unchanged = and_(
        jobs.c.id == job.id, jobs.c.attempt == job.attempt, jobs.c.version == job.version
    )
    if connection.execute(update(jobs).where(unchanged).values(values)).rowcount != 1:
        raise StaleJobError(f"job {job.id} has changed since version {job.version}")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without enums, which drivers store each in their own way."""
    return {k: str(v) if isinstance(v, StrEnum) else v for k, v in values.items()}


def _record(connection: Connection, job_id: str, attempt: int, event: NewEvent) -> None:
    values = {
        "job_id": job_id,
        "attempt": attempt,
        "at": clock(),
        "type": event.type,
        "message": event.message,
        "data": json.dumps(dict(event.data)),
    }
    connection.execute(insert(events).values(values))


def _filtered(query: Select[Any], filter: JobFilter) -> Select[Any]:
    if filter.experiment is not None:
        query = query.where(jobs.c.experiment == filter.experiment)
    if filter.kinds:
        query = query.where(jobs.c.kind.in_(filter.kinds))
    if filter.states:
        query = query.where(jobs.c.state.in_(filter.states))
    for key, value in filter.labels.items():
        label = and_(
            job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value
        )
        query = query.where(exists().where(label))
    return query


def _readable(rows: Iterable[Row[Any]]) -> Jobs:
    """Without jobs whose specification needs a package that is gone: the others must go on."""
    found = []
    for row in rows:
        try:
            found.append(_job(row))
        except JobUnreadableError:
            logger.exception("a job is left out")
    return found


@lru_cache(maxsize=512)
def _parsed(kind: str, spec: str) -> AnySpec:
    """A specification never changes, and to validate a search's whole space takes a while."""
    return Kind(kind).spec.model_validate_json(spec, context=TRUSTED)


def _job(row: Row[Any]) -> Job:
    try:
        spec = _parsed(row.kind, row.spec)
    except ValueError as error:  # also a kind, or a specification, of a later release
        raise JobUnreadableError(f"job {row.id}: {error}") from error
    current = None
    if row.attempt_number is not None:
        current = Attempt(
            job_id=row.id, **{c.name: getattr(row, f"attempt_{c.name}") for c in _ATTEMPT_COLUMNS}
        )
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
        current=current,
    )


def _event(row: Row[Any]) -> Event:
    return Event(**{**row._mapping, "data": json.loads(row.data)})


def _new_id(now: float) -> str:
    """8 characters of milliseconds since 2020, then 4 random ones: sorts by age until 2054."""
    number = (int((now - _EPOCH_2020) * 1000) << 20) | secrets.randbits(20)
    return "".join(_DIGITS[(number >> shift) & 31] for shift in range(55, -1, -5))


def _encode_cursor(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> str:
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise CursorInvalidError from None
    if not _ID.fullmatch(job_id):
        raise CursorInvalidError
    return job_id
