"""What the attempts of a job have achieved: none of it is thrown away, and poison is given up."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Row

from service.reconcile import MAX_LOSSES
from service.testing.worker import Start
from workers.attempt import Reason

LOSSES = {Reason.WORKER_LOST, Reason.NODE_LOST, Reason.INTERRUPTED}
"""Reasons of attempts that were lost without an error of their own."""
GIVEN_UP = "lost "
"""So the evidence of a poison job begins."""

Breach = Callable[[str, bool, str], None]


class Achieving(Protocol):
    """All workers of a test, as they themselves know what they did."""

    starts: list[Start]
    gains: set[tuple[str, int]]


@dataclass
class Work:
    """The record of it; breaches are told to `breach`."""

    workers: Achieving
    breach: Breach
    fruitless: Counter[str] = field(default_factory=Counter)
    """By job, lost attempts in a row that left no checkpoint newer than where they began."""
    head_lost: set[tuple[str, int]] = field(default_factory=set)
    """Attempts whose head died: such a loss is nobody's fault."""
    given_up: set[str] = field(default_factory=set)
    """Jobs that failed as poison."""
    _starts_seen: int = 0

    def lose_head(self, running: Collection[tuple[str, int]]) -> None:
        """The head dies under these attempts."""
        self.head_lost.update(running)

    def check_starts(self) -> None:
        """Every attempt goes on from all that was left when it began."""
        new: Sequence[Start] = self.workers.starts[self._starts_seen :]
        self._starts_seen += len(new)
        for start in new:
            self.breach("work thrown away", start.step < start.left, str(start))

    def replay(self, event: Row[Any]) -> None:
        """Count losses in a row as the job's history goes on."""
        job = event.job_id
        reason = json.loads(event.data).get("reason")
        if event.type == "requeued" and reason in LOSSES:
            self._count(event)
            losses = self.fruitless[job]
            what = f"job {job}: a new attempt after {losses} losses without a new checkpoint"
            self.breach("poison goes on", losses >= MAX_LOSSES, what)
        elif event.type == "failed" and event.message.startswith(GIVEN_UP):
            self._count(event)
            losses = self.fruitless[job]
            what = f"job {job}: after {losses} such losses: {event.message}"
            self.breach("given up too early", losses < MAX_LOSSES, what)
            self.given_up.add(job)
        elif self._ends_the_row(event, reason):
            self.fruitless[job] = 0

    def _ends_the_row(self, event: Row[Any], reason: str | None) -> bool:
        """A user's retry, an error, or a pause with something gained; not to be resumed alone."""
        match event.type:
            case "retry-requested" | "retry-failed":
                return True
            case "requeued":
                return reason != Reason.PAUSED
            case "paused":
                return (event.job_id, event.attempt) in self.workers.gains
            case _:
                return False

    def _count(self, event: Row[Any]) -> None:
        attempt = (event.job_id, event.attempt)
        if attempt in self.head_lost:
            return
        fruitless = 0 if attempt in self.workers.gains else self.fruitless[event.job_id] + 1
        self.fruitless[event.job_id] = fruitless
