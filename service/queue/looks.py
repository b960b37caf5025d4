"""What the reconciler looks at: the jobs that run, that may start, that are to be seen to.

A page is as long as was asked for, however many jobs on the way to its end cannot be read: one
that is shorter, or empty, is the last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select

from service.queue.job import MAX_BACKOFF_S, TERMINAL, Desired, Job, State
from service.queue.rows import JOB, readable
from service.queue.tables import NOT_RUN, UNCLOSED, jobs

LONGER = 500
"""Rows that are read at once where some could not be: most likely many more can't."""


@dataclass(frozen=True)
class _Order:
    """In which jobs are read, and whether one of them comes later than (priority, id)."""

    columns: tuple[ColumnElement[Any], ...]
    behind: Callable[[int, str], ColumnElement[bool]]


def _behind_in_queue(priority: int, job_id: str) -> ColumnElement[bool]:
    return or_(jobs.c.priority < priority, and_(jobs.c.priority == priority, jobs.c.id > job_id))


_QUEUE = _Order((jobs.c.priority.desc(), jobs.c.id), _behind_in_queue)
_AGE = _Order((jobs.c.id,), lambda _, job_id: jobs.c.id > job_id)


def running(connection: Connection) -> list[Job]:
    """Jobs with an attempt that may be alive, in the queue's order."""
    query = JOB.where(jobs.c.state == State.RUNNING).order_by(*_QUEUE.columns)
    return readable(connection.execute(query))


def claimable(connection: Connection, now: float, after: Job | None, limit: int) -> list[Job]:
    """Queued jobs that may start at `now`, in the queue's order."""
    # Nobody backs off for so long: the clock was set back.
    impossible = jobs.c.not_before > now + MAX_BACKOFF_S
    due = or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now, impossible)
    query = JOB.where(jobs.c.state == State.QUEUED, jobs.c.desired == Desired.RUN, due)
    if after is not None:
        query = query.where(_QUEUE.behind(after.spec.priority, after.id))
    return _page(connection, query, _QUEUE, limit)


def unsettled(connection: Connection, limit: int) -> list[Job]:
    """Jobs that wait, and whose user wants something else of them."""
    stopped = select(jobs.c.id).where(NOT_RUN, jobs.c.state == State.QUEUED)
    resumed = select(jobs.c.id).where(jobs.c.state == State.PAUSED, jobs.c.desired != Desired.PAUSE)
    found = jobs.c.id.in_(stopped.union_all(resumed))  # not `or`: SQLite would read all jobs
    return _page(connection, JOB.where(found), _AGE, limit)


def unclosed(connection: Connection, limit: int) -> list[Job]:
    """Ended jobs whose MLflow run may not carry the final status yet."""
    return _page(connection, JOB.where(UNCLOSED, jobs.c.state.in_(TERMINAL)), _AGE, limit)


def _page(connection: Connection, query: Select[Any], order: _Order, limit: int) -> list[Job]:
    """The first `limit` jobs that can be read."""
    query, size = query.order_by(*order.columns), limit
    rows = connection.execute(query.limit(size)).all()
    found = readable(rows)
    while len(rows) == size and len(found) < limit:
        behind = order.behind(rows[-1].priority, rows[-1].id)
        size = LONGER
        rows = connection.execute(query.where(behind).limit(size)).all()
        found += readable(rows)
    return found[:limit]
