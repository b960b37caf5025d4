"""The queue's store: every write is one transaction, and holds the event that tells of it.

A change of a job is a compare-and-set on (attempt, version). The attempt fences: whoever still
holds a record of an earlier attempt changes nothing.

What is done in a user's name takes an `owner`: another owner's job is not there then, in the very
words in which one that does not exist is not. None, as for the reconciler, sees all.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from service.errors import (
    JobActiveError,
    JobConflictError,
    JobEndedError,
    StaleJobError,
)
from service.queue import looks
from service.queue.adding import Outcome, Submission, Submitted, add_all, digest_of, find_keyed
from service.queue.engine import make_engine, outage, patiently, reading, writing
from service.queue.job import TERMINAL, AnySpec, Attempt, Desired, Event, Job, Kind, State
from service.queue.places import Places
from service.queue.rows import (
    ATTEMPT_COLUMNS,
    JOB,
    SHOWN,
    attempt_of,
    decode_cursor,
    encode_cursor,
    event_of,
    get_job,
    readable,
)
from service.queue.schema import is_up_to_date, upgrade
from service.queue.tables import NOT_RUN, attempts, clock, events, job_labels, jobs, queue
from service.queue.tick_lock import tick_lock
from service.queue.together import Together
from service.queue.tokens import TokenStore
from service.queue.watch import Watch
from service.tokens import LOCAL
from workers.crash import crashing

Jobs = list[Job]  # names that `Store.list` does not hide
Events = list[Event]
Attempts = list[Attempt]

SUBMITTED_TOGETHER = 64
LOOKED_UP_TOGETHER = 64


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
    owner: str | None = None


@dataclass(frozen=True)
class Page:
    """Some jobs, and where the next ones begin."""

    jobs: list[Job]
    next_cursor: str | None


class Store:
    """Jobs, their attempts and events in a database."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._reader = reading(self.engine)
        self._writer = writing(self.engine)
        self.tokens = TokenStore(self.engine)
        self._watch = Watch(self.now)
        self._places = Places()
        self._lookups = Together(self._positions_of_all, most=LOOKED_UP_TOGETHER)
        self._submissions = Together(self._submit_all, most=SUBMITTED_TOGETHER)

    def migrate(self) -> None:
        """Bring the schema up to date; several processes may do so at once."""
        with self.engine.connect() as connection:
            if is_up_to_date(connection):
                return
        with self._writer.begin() as connection, patiently(connection):
            upgrade(connection)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def queue_id(self) -> str:
        """Which queue this is: by it Ray's jobs are told from those of another one."""
        with self.engine.connect() as connection:
            return str(connection.execute(select(queue.c.id)).scalar_one())

    def tick_lock(self) -> AbstractContextManager[bool]:
        """The right to look at the jobs and act, until the end of the block; false without it."""
        return tick_lock(self.engine)

    # ------------------------------------------------------------------------------- reading

    def now(self) -> float:
        """The database's clock, in seconds since 1970."""
        with self._reader.connect() as connection:
            return _now(connection)

    def about_now(self) -> float:
        """The same within some milliseconds, without asking the database each time."""
        return self._watch.now()

    def ping(self) -> None:
        """Raise whatever keeps the database from answering."""
        with self._reader.connect() as connection:
            connection.execute(select(jobs.c.id).limit(1))

    def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """Raises JobNotFoundError."""
        with self._reader.connect() as connection:
            return get_job(connection, job_id, owner=owner)

    def list(
        self,
        filter: JobFilter,
        cursor: str | None = None,
        limit: int = 50,
        *,
        sees_only: str | None = None,
    ) -> Page:
        """A page of jobs, the newest first; jobs that come meanwhile do not shift it.

        Besides what the filter says, they are those of the owner `sees_only`, unless that is None.
        """
        query = _filtered(JOB, filter).order_by(jobs.c.id.desc()).limit(limit + 1)
        if sees_only is not None:
            query = query.where(jobs.c.owner == sees_only)
        if cursor is not None:
            query = query.where(jobs.c.id < decode_cursor(cursor))
        rows = self._rows(query)
        more = len(rows) > limit
        return Page(readable(rows[:limit]), encode_cursor(rows[limit - 1].id) if more else None)

    def running(self) -> Jobs:
        """Jobs with an attempt that may be alive, in the queue's order."""
        with self._reader.connect() as connection:
            return looks.running(connection)

    def claimable(self, now: float, after: Job | None = None, limit: int = 50) -> Jobs:
        """Queued jobs that may start at `now`: the highest priority first, then the oldest.

        None at all are only at the queue's end: what cannot be read is passed over.
        """
        with self._reader.connect() as connection:
            return looks.claimable(connection, now, after, limit)

    def unsettled(self, limit: int = 500) -> Jobs:
        """Jobs that wait, and whose user wants something else of them."""
        with self._reader.connect() as connection:
            return looks.unsettled(connection, limit)

    def unclosed(self, limit: int = 50) -> Jobs:
        """Ended jobs whose MLflow run may not carry the final status yet; the oldest first."""
        with self._reader.connect() as connection:
            return looks.unclosed(connection, limit)

    def deleted(self, limit: int = 50) -> Sequence[str]:
        """Jobs that are to be forgotten and of whose end MLflow knows, by their ids."""
        told = or_(jobs.c.run_closed, jobs.c.experiment_id.is_(None))
        asked = and_(NOT_RUN, jobs.c.desired == Desired.DELETE)
        query = select(jobs.c.id).where(asked, told).limit(limit)
        return [row.id for row in self._rows(query)]

    def current(self, job_ids: Iterable[str]) -> dict[str, tuple[State, int]]:
        """State and number of the current attempt of those of these jobs that exist."""
        query = select(jobs.c.id, jobs.c.state, jobs.c.attempt).where(jobs.c.id.in_(list(job_ids)))
        return {row.id: (State(row.state), row.attempt) for row in self._rows(query)}

    def positions(self, job_ids: Iterable[str]) -> dict[str, int]:
        """Places in the queue, from 1, of those that are queued; see `Places`."""
        return self._lookups.one(list(job_ids))

    def _positions_of_all(self, asked: Sequence[Sequence[str]]) -> Sequence[dict[str, int]]:
        """Several threads' questions by one statement; each finds its own in the answer."""
        everybody = {job_id for job_ids in asked for job_id in job_ids}
        with self._reader.connect() as connection:
            found = self._places.of(connection, everybody)
        return [{id: found[id] for id in job_ids if id in found} for job_ids in asked]

    def attempts(self, job_id: str, *, owner: str | None = None) -> Attempts:
        """A job's attempts, by number. Raises JobNotFoundError."""
        query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self._reader.connect() as connection:
            get_job(connection, job_id, owner=owner)
            return [attempt_of(row) for row in connection.execute(query)]

    def events(self, job_id: str, after: int = 0, limit: int = 100) -> Events:
        """A job's history in order, beyond the event `after`."""
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        )
        with self._reader.connect() as connection:
            return [event_of(row) for row in connection.execute(query)]

    def find_keyed(self, owner: str, key: str, request: str) -> Job | None:
        """The job that the same request made before.

        Raises KeyReusedError where the key came with another request, JobDeletedError.
        """
        with self._reader.connect() as connection:
            return find_keyed(connection, owner, key, digest_of(request))

    # ------------------------------------------------------------------------------- writing

    def add(self, spec: AnySpec, *, owner: str = LOCAL, idempotency_key: str | None = None) -> Job:
        """Queue a new job; with the key of an earlier submission, find that one's job.

        Raises KeyReusedError where the key came with another specification, JobDeletedError.
        """
        return self.submit(spec, owner=owner, idempotency_key=idempotency_key).job

    def submit(
        self, spec: AnySpec, *, owner: str, idempotency_key: str | None, request: str | None = None
    ) -> Submitted:
        """As `add`, and tells whether the job is one of before.

        What several threads submit at the same time is committed together. A submission is repeated
        where the `request` is the same: the specification, if no other is given.
        """
        return self._submissions.one(Submission(spec, owner, idempotency_key, request))

    def _submit_all(self, submissions: Sequence[Submission]) -> Sequence[Outcome]:
        if len(submissions) == 1:
            return [self._submit_one(submissions[0])]
        try:
            with self._writing("add") as connection:
                return add_all(connection, submissions)
        except Exception as error:
            if isinstance(error, SQLAlchemyError) and outage(error):
                raise
        return [self._told(submission) for submission in submissions]

    def _told(self, submission: Submission) -> Outcome:
        try:
            return self._submit_one(submission)
        except Exception as error:  # its own: the others are queued all the same
            return error

    def _submit_one(self, submission: Submission) -> Outcome:
        for _ in range(9):
            try:
                with self._writing("add") as connection:
                    return add_all(connection, [submission])[0]
            except IntegrityError:  # another one got the same random id, or came with the same key
                continue
        raise RuntimeError("no free job id in 9 tries")

    def set_desired(self, job_id: str, desired: Desired, *, owner: str | None = None) -> Job:
        """Say what the user wants; a cancel is final. Raises JobNotFoundError, JobEndedError."""
        with self._writing("set-desired") as connection:
            job = get_job(connection, job_id, owner=owner, lock=True)
            if job.state.terminal and job.state != _ENDS_AS.get(desired):
                raise JobEndedError(f"job {job.id} is {job.state}: it can't change any more")
            if job.desired is Desired.CANCEL and desired is not Desired.CANCEL:
                raise JobEndedError(f"job {job.id} is being cancelled: it can't change any more")
            if job.state.terminal or job.desired is desired:
                return job
            name = "resume" if desired is Desired.RUN else desired.value
            event = NewEvent(f"{name}-requested", f"asked to {name}")
            return _change(connection, job, event, {"desired": desired})

    def retry(self, job_id: str, *, owner: str | None = None) -> Job:
        """Queue a failed or cancelled job again; it goes on from its newest checkpoint.

        Raises JobNotFoundError, JobConflictError where it has not ended, or has succeeded.
        """
        with self._writing("retry") as connection:
            job = get_job(connection, job_id, owner=owner, lock=True)
            if not job.state.terminal:
                raise JobConflictError(
                    f"job {job.id} is {job.state}", hint="retry is for jobs that have ended"
                )
            if job.state is State.SUCCEEDED:
                raise JobConflictError(
                    f"job {job.id} has succeeded",
                    hint="submit a new job; `init_from` continues from this one's checkpoint",
                )
            event = NewEvent("retry-requested", "asked to try again")
            return _change(connection, job, event, _AFRESH)

    def reopen(self, job_id: str, *, owner: str | None = None) -> Job:
        """Queue an ended search again: all that failed up to now is void.

        Raises JobNotFoundError, JobConflictError where it is no search or has not ended.
        """
        with self._writing("reopen") as connection:
            job = get_job(connection, job_id, owner=owner, lock=True)
            if job.kind is not Kind.SEARCH:
                raise JobConflictError(f"job {job.id} is a training and has no trials")
            if not job.state.terminal:
                raise JobConflictError(
                    f"search {job.id} is {job.state}",
                    hint="retry-failed is for searches that have ended",
                )
            event = NewEvent("retry-failed", "asked to run the failed trials again")
            return _change(connection, job, event, {**_AFRESH, "retry_through": job.attempt})

    def request_delete(self, job_id: str, *, owner: str | None = None) -> None:
        """Have an ended job forgotten with all its files; nobody finds it from now on.

        Raises JobNotFoundError, JobActiveError where it has not ended, JobConflictError where
        another one that has not ended begins from its checkpoint.
        """
        with self._writing("request-delete") as connection:
            job = get_job(connection, job_id, owner=owner, lock=True)
            if not job.state.terminal:
                raise JobActiveError(f"job {job.id} is {job.state}")
            _refuse_with_heir(connection, job.id, owner)
            event = NewEvent("delete-requested", "asked to delete")
            _change(connection, job, event, {"desired": Desired.DELETE}, hidden=True)

    def remove(self, job_id: str) -> None:
        """Forget a job that is to be deleted, with its attempts and events."""
        ours = and_(jobs.c.id == job_id, jobs.c.desired == Desired.DELETE)
        with self._writing("remove") as connection:
            connection.execute(delete(jobs).where(ours))

    def start_attempt(self, job: Job, event: NewEvent, session: str | None = None) -> Job:
        """Begin the next attempt: RUNNING, with a row of its own, before Ray hears of it.

        Why the attempt before ended, and what the job waited for, is cleared: it is history.

        Args:
            job: The record as it was read.
            event: The line of history that tells of it.
            session: The cluster's session in which Ray will be called.
        """
        number = job.attempt + 1
        with self._writing("start-attempt") as connection:
            attempt = {
                "job_id": job.id,
                "number": number,
                "created_at": clock(),
                "session": session,
            }
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
            return get_job(connection, job.id)

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
        with self._writing("update") as connection:
            return _change(connection, job, event, changes, attempt, hidden=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Connection]:
        """A transaction that may write, and at whose both ends a crash can be played."""
        with crashing(f"commit.{name}"), self._writer.begin() as connection:
            yield connection

    def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with self._reader.connect() as connection:
            return connection.execute(query).all()


_ENDS_AS = {Desired.CANCEL: State.CANCELLED}

_AFRESH: Mapping[str, Any] = {
    "state": State.QUEUED,
    "desired": Desired.RUN,
    "reason": None,
    "evidence": "",
    "waiting_reason": "",
    "not_before": None,
    "finished_at": None,
    "errors": 0,
    "losses": 0,
    "run_closed": False,
}
"""An ended job that is to run again."""

_JOB_CHANGES = frozenset(c.name for c in jobs.c) - {
    "id", "kind", "spec", "name", "experiment", "priority", "version", "created_at", "updated_at",
    "owner", "init_job",
}  # fmt: skip
_ATTEMPT_CHANGES = frozenset(c.name for c in ATTEMPT_COLUMNS) - {"number", "created_at"}


def _now(connection: Connection) -> float:
    return float(connection.execute(select(clock())).scalar_one())


def _refuse_with_heir(connection: Connection, job_id: str, owner: str | None) -> None:
    """Raises JobConflictError while a job that has not ended begins from this one's checkpoint.

    One that its user may not see is not named.
    """
    heirs = select(jobs.c.id, jobs.c.owner).where(
        jobs.c.init_job == job_id, jobs.c.state.not_in(TERMINAL)
    )
    heir = connection.execute(heirs.limit(1)).one_or_none()
    if heir is None:
        return
    if owner in (None, heir.owner):
        raise JobConflictError(
            f"job {heir.id} begins from a checkpoint of job {job_id}, and has not ended",
            hint=f"wait for job {heir.id}, or cancel it",
        )
    raise JobConflictError(
        f"another owner's job begins from a checkpoint of job {job_id}, and has not ended",
        hint="wait for its end, or ask an administrator",
    )


def _change(
    connection: Connection,
    job: Job,
    event: NewEvent | None,
    changes: Mapping[str, Any],
    attempt: Mapping[str, Any] | None = None,
    *,
    hidden: bool = False,
) -> Job:
    if unknown := (changes.keys() - _JOB_CHANGES) | ((attempt or {}).keys() - _ATTEMPT_CHANGES):
        raise ValueError(f"no fields that change: {', '.join(sorted(unknown))}")
    _compare_and_set(connection, job, changes)
    if attempt:
        current = and_(attempts.c.job_id == job.id, attempts.c.number == job.attempt)
        connection.execute(update(attempts).where(current).values(_plain(attempt)))
    if event is not None:
        _record(connection, job.id, job.attempt, event)
    return get_job(connection, job.id, hidden=hidden)


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
    query = query.where(SHOWN)
    if filter.experiment is not None:
        query = query.where(jobs.c.experiment == filter.experiment)
    if filter.owner is not None:
        query = query.where(jobs.c.owner == filter.owner)
    if filter.kinds:
        query = query.where(jobs.c.kind.in_(filter.kinds))
    if filter.states:
        query = query.where(jobs.c.state.in_(filter.states))
    for key, value in filter.labels.items():
        labelled = select(job_labels.c.job_id).where(
            job_labels.c.key == key, job_labels.c.value == value
        )
        query = query.where(jobs.c.id.in_(labelled))
    return query
