"""Ends what Ray runs for this queue although the queue does not know it.

Such an attempt can commit nothing, since only the current one's folder is read; but it holds a
slot.
"""

import logging

from service.cluster import ClusterSeen
from service.errors import ClusterUnavailableError
from service.queue.job import State
from service.reconciler.parts import Parts

logger = logging.getLogger(__name__)

PREFIX = "caps-"
FOREIGN_FOR_S = 5.0
"""An attempt that has just left its result ends by itself."""


class Sweeper:
    """Stops Ray's jobs that carry our queue's id and are no current attempt."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._since: dict[str, float] = {}

    def sweep(self, seen: ClusterSeen) -> None:
        """Look at what Ray runs, as it was listed before the jobs were read."""
        ours = self._parts.store.queue_id()
        alive = [id for id, ray in seen.jobs.items() if ray.status.alive and ray.queue_id == ours]
        attempts = {id: found for id in alive if (found := _attempt_of(id)) is not None}
        current = self._parts.store.current(job for job, _ in attempts.values())
        foreign = [
            id
            for id, (job, number) in attempts.items()
            if current.get(job) != (State.RUNNING, number)
        ]
        now = self._parts.now()
        self._since = {id: self._since.get(id, now) for id in foreign}
        for submission, since in self._since.items():
            if abs(now - since) >= FOREIGN_FOR_S:
                self._stop(submission)

    def _stop(self, submission: str) -> None:
        logger.warning("%s is no current attempt: it is stopped", submission)
        try:
            self._parts.cluster.stop(submission)
        except ClusterUnavailableError as error:
            logger.warning("%s is stopped later: %s", submission, error)


def _attempt_of(submission: str) -> tuple[str, int] | None:
    job, dash, number = submission.removeprefix(PREFIX).rpartition("-")
    ours = submission.startswith(PREFIX) and dash and number.isdecimal()
    return (job, int(number)) if ours else None
