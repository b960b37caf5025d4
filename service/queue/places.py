"""Places in the queue, from 1: exact near its head, up to a second old far from it.

To count all that is ahead of a job takes as long as the queue is. What was counted for one job is
therefore remembered for a moment: others of its priority that are behind it are counted from there.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Integer, Select, String, and_, bindparam, case, func, select

from service.queue.job import State
from service.queue.tables import jobs

FRESH_S = 1.0
EXACT = 1_000
"""Places up to this one are always counted."""
REMEMBERED = 6
"""Priorities in use are few."""


@dataclass(frozen=True)
class _Mark:
    """The place of a job, as it was counted."""

    id: str
    place: int
    at: float


class Places:
    """Finds places; `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: dict[int, _Mark] = {}
        self._lock = threading.Lock()

    def of(self, connection: Connection, job_ids: Iterable[str]) -> dict[str, int]:
        """Places of those of these jobs that are queued."""
        marks = self._fresh()
        rows = connection.execute(_COUNTS, {"job_ids": list(job_ids), **_marks(marks)}).all()
        began_anew = {row.priority for row in rows if row.since == ""}
        ahead = _ahead(connection, began_anew)
        found: dict[str, int] = {}
        for row in rows:  # those of a priority in the queue's order
            if row.since == "":
                found[row.id] = ahead[row.priority] + row.between
                self._remember(row.priority, row.id, found[row.id])
            elif row.since in found:
                found[row.id] = found[row.since] + row.between
            else:
                found[row.id] = marks[row.priority].place + row.between
        return found

    def _fresh(self) -> dict[int, _Mark]:
        now = self._clock()
        with self._lock:
            kept = {p: mark for p, mark in self._marks.items() if now - mark.at < FRESH_S}
            self._marks = kept
            return dict(kept)

    def _remember(self, priority: int, job_id: str, place: int) -> None:
        with self._lock:
            if place > EXACT and (priority in self._marks or len(self._marks) < REMEMBERED):
                self._marks[priority] = _Mark(job_id, place, self._clock())


def _statement() -> Select[Any]:
    """Of each job how many of its priority are queued between `since`, exclusive, and itself.

    That is the one before it in `job_ids`, else the mark of its priority, else "": the beginning.
    Built once: to build it takes longer than to run it.
    """
    before = func.lag(jobs.c.id).over(partition_by=jobs.c.priority, order_by=jobs.c.id)
    behind_a_mark = [
        (
            and_(
                jobs.c.priority == bindparam(f"priority_{n}", type_=Integer),
                jobs.c.id >= bindparam(f"mark_{n}", type_=String),
            ),
            bindparam(f"mark_{n}", type_=String),
        )
        for n in range(REMEMBERED)
    ]
    asked = (
        select(
            jobs.c.id,
            jobs.c.priority,
            func.coalesce(before, case(*behind_a_mark, else_="")).label("since"),
        )
        .where(jobs.c.state == State.QUEUED, jobs.c.id.in_(bindparam("job_ids", expanding=True)))
        .subquery("asked")
    )
    other = jobs.alias("other")
    between = (
        select(func.count())
        .select_from(other)
        .where(
            other.c.state == State.QUEUED,
            other.c.priority == asked.c.priority,
            other.c.id > asked.c.since,
            other.c.id <= asked.c.id,
        )
        .scalar_subquery()
    )
    query = select(asked.c.id, asked.c.priority, asked.c.since, between.label("between"))
    return query.order_by(asked.c.priority.desc(), asked.c.id)


_COUNTS = _statement()
_LEVELS = (
    select(jobs.c.priority, func.count())
    .where(jobs.c.state == State.QUEUED, jobs.c.priority > bindparam("lowest", type_=Integer))
    .group_by(jobs.c.priority)
)


def _marks(marks: Mapping[int, _Mark]) -> dict[str, Any]:
    """As parameters of the statement; what is left over matches nothing."""
    found: dict[str, Any] = {}
    known = [*marks.items()]
    for n in range(REMEMBERED):
        priority, mark = known[n] if n < len(known) else (None, None)
        found[f"priority_{n}"] = priority
        found[f"mark_{n}"] = mark.id if mark else None
    return found


def _ahead(connection: Connection, priorities: Iterable[int]) -> dict[int, int]:
    """How many are queued with a higher priority, for each of these."""
    wanted = sorted(priorities)
    if not wanted:
        return {}
    rows = connection.execute(_LEVELS, {"lowest": wanted[0]})
    counts = [(row[0], row[1]) for row in rows]
    return {p: sum(count for other, count in counts if other > p) for p in wanted}
