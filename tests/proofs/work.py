"""What the attempts of a job have achieved: none of it is thrown away, and poison is given up."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Row as Event

from service.reconcile import MAX_LOSSES
from service.testing.worker import Start
from workers.attempt import Reason

LOSSES = {Reason.WORKER_LOST, Reason.NODE_LOST, Reason.INTERRUPTED}
"""Reasons of attempts that were lost without an error of their own."""
ENDS_THE_ROW = ("retry-requested", "retry-failed", "unpaused", "requeued")
"""A user's retry or resume, and a new attempt after an error."""
GIVEN_UP = "lost "
"""So the evidence of a poison job begins."""

Attempt = tuple[str, int]
Breach = Callable[[str, bool, str], None]


class Head(Protocol):
    """Ray's, which can be asked only while both are true."""

    head_lives: bool
    reachable: bool


class Achieving(Protocol):
    """All workers of a test, as they themselves know what they did."""

    starts: list[Start]
    gains: set[Attempt]


@dataclass
class Work:
    """The record of it; breaches are told to `breach`."""

    workers: Achieving
    ray: Head
    breach: Breach
    losses: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By job: lost attempts in a row that left no checkpoint newer than where they began."""
    orphans: set[Attempt] = field(default_factory=set)
    """Attempts whose head died before the queue knew of their end."""
    given_up: set[str] = field(default_factory=set)
    """Jobs that failed as poison."""
    _starts_seen: int = 0

    def check_starts(self) -> None:
        """Every attempt goes on from all that was left when it began."""
        new: Sequence[Start] = self.workers.starts[self._starts_seen :]
        self._starts_seen += len(new)
        for start in new:
            self.breach("work thrown away", start.step < start.left, str(start))

    def check_losses(self, job: Event[Any]) -> None:
        """The queue counts as we do."""
        what = f"job {job.id}, attempt {job.attempt}: {job.losses}, not {self.losses[job.id]}"
        self.breach("losses miscounted", job.losses != self.losses[job.id], what)

    def replay(self, event: Event[Any]) -> None:
        """Count losses in a row as the job's history goes on."""
        job, reason = event.job_id, json.loads(event.data).get("reason")
        what = f"job {job}, attempt {event.attempt}: {event.message}"
        if event.type == "requeued" and reason in LOSSES:
            self._count(event)
            self.breach("poison goes on", self.losses[job] >= MAX_LOSSES, what)
        elif event.type == "failed" and event.message.startswith(GIVEN_UP):
            self._count(event)
            self.breach("given up too early", self.losses[job] < MAX_LOSSES, what)
            self.given_up.add(job)
        elif event.type in ENDS_THE_ROW:
            self.losses[job] = 0

    def _count(self, event: Event[Any]) -> None:
        """Count one lost attempt: what it has gained ends the row; a dead head is nobody's fault.

        The queue knows that it was the head only when it sees another one. While none answers it
        believes an attempt's own word that a signal ended it.
        """
        attempt = (event.job_id, event.attempt)
        another_head = attempt in self.orphans and self.ray.head_lives and self.ray.reachable
        if attempt in self.workers.gains:
            self.losses[event.job_id] = 0
        elif not another_head:
            self.losses[event.job_id] += 1
