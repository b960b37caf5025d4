"""What the attempts of a job have achieved: none of it is thrown away, and poison is given up."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Row as Event

from service.reconcile import MAX_LOSSES
from service.testing.worker import Start
from workers.attempt import Reason

LOSSES = {Reason.WORKER_LOST, Reason.NODE_LOST, Reason.INTERRUPTED}
"""Reasons of attempts that were lost without an error of their own."""
ENDS_THE_ROW = ("retry-requested", "retry-failed", "requeued")
"""A user's retry, and a new attempt after an error."""
GIVEN_UP = "lost "
"""So the evidence of a poison job begins."""

Attempt = tuple[str, int]
Breach = Callable[[str, bool, str], None]


class Achieving(Protocol):
    """All workers of a test, as they themselves know what they did."""

    starts: list[Start]
    gains: set[Attempt]


@dataclass
class Row:
    """Lost attempts in a row that left no checkpoint newer than where they began."""

    surely: int = 0
    """By a count that leaves out whatever somebody else may be blamed for."""
    perhaps: int = 0
    """By a count that leaves out what somebody else is surely to blame for."""


@dataclass
class Work:
    """The record of it; breaches are told to `breach`."""

    workers: Achieving
    breach: Breach
    rows: defaultdict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    """By job."""
    orphans: set[Attempt] = field(default_factory=set)
    """Attempts whose head died under them: such a loss is nobody's fault."""
    bereaved: set[Attempt] = field(default_factory=set)
    """Attempts that were over when their head died, which nobody had seen yet."""
    given_up: set[str] = field(default_factory=set)
    """Jobs that failed as poison."""
    _starts_seen: int = 0

    def lose_head(self, running: Collection[Attempt], over: Collection[Attempt]) -> None:
        """The head dies under these attempts, the processes of some of which are over."""
        self.orphans.update(set(running) - set(over))
        self.bereaved.update(set(running) & set(over))

    def check_starts(self) -> None:
        """Every attempt goes on from all that was left when it began."""
        new: Sequence[Start] = self.workers.starts[self._starts_seen :]
        self._starts_seen += len(new)
        for start in new:
            self.breach("work thrown away", start.step < start.left, str(start))

    def replay(self, event: Event[Any]) -> None:
        """Count losses in a row as the job's history goes on."""
        row, reason = self.rows[event.job_id], json.loads(event.data).get("reason")
        what = f"job {event.job_id}, attempt {event.attempt}: {event.message}"
        if event.type == "requeued" and reason in LOSSES:
            self._count(event, row, own_word=reason == Reason.INTERRUPTED)
            self.breach("poison goes on", row.surely >= MAX_LOSSES, f"{what}, {row}")
        elif event.type == "failed" and event.message.startswith(GIVEN_UP):
            self._count(event, row, own_word=reason == Reason.INTERRUPTED)
            self.breach("given up too early", row.perhaps < MAX_LOSSES, f"{what}, {row}")
            self.given_up.add(event.job_id)
        elif event.type == "requeued" and reason == Reason.PAUSED:
            row.surely = 0  # it goes on by a user's word
        elif event.type in ENDS_THE_ROW or (event.type == "paused" and self._gained(event)):
            row.surely = row.perhaps = 0

    def _count(self, event: Event[Any], row: Row, own_word: bool) -> None:
        """Count one; `own_word` where the attempt itself has said that a signal ended it."""
        attempt = (event.job_id, event.attempt)
        orphan, gained = attempt in self.orphans, self._gained(event)
        nobody_knows = attempt in self.bereaved or (orphan and own_word)
        if gained:
            row.surely = 0
            row.perhaps = row.perhaps if orphan or nobody_knows else 0
        elif nobody_knows:
            row.perhaps += 1
        elif not orphan:
            row.surely += 1
            row.perhaps += 1

    def _gained(self, event: Event[Any]) -> bool:
        return (event.job_id, event.attempt) in self.workers.gains
