"""What the parts of the reconciler have in common: what they act on, and by which clock."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from service.cluster import Cluster, ClusterSeen
from service.errors import ClusterUnavailableError, StaleJobError, TrackingUnavailableError
from service.queue.job import Job
from service.queue.store import Store
from service.settings import Settings
from workers.attempt import AttemptFolder, ProcessRecord

logger = logging.getLogger(__name__)

More = ParamSpec("More")
Answer = TypeVar("Answer")

EVIDENCE_LENGTH = 2000


class Runs(Protocol):
    """What the reconciler asks of MLflow; `service.testing` has one in memory."""

    def ensure(self, job: Job) -> tuple[str, str]:
        """The job's (experiment id, run id). Raises TrackingUnavailableError."""

    def drop(self, run_id: str) -> None:
        """End a run that was made for a job which has another. Raises TrackingUnavailableError."""

    def close(self, job: Job, folder: AttemptFolder | None) -> bool:
        """Send what is left of an ended job and give its run the final status, step by step.

        False while there is more to do. Raises TrackingUnavailableError.
        """


@dataclass(frozen=True)
class Parts:
    """The outside of the reconciler."""

    store: Store
    cluster: Cluster
    runs: Runs
    settings: Settings
    now: Callable[[], float]
    """The clock of all decisions: the database's."""
    wake: Callable[[], None]
    """Look again at once: something has changed for others too."""

    def folder(self, job: Job) -> AttemptFolder:
        """The current attempt's."""
        return AttemptFolder(self.settings.storage_root, job.id, job.attempt)


@dataclass(frozen=True)
class Sight:
    """One look at the cluster, or why there is none."""

    seen: ClusterSeen | None
    problem: str = ""

    @classmethod
    def of(cls, cluster: Cluster) -> "Sight":
        """Look."""
        try:
            return cls(cluster.look())
        except ClusterUnavailableError as error:
            return cls(None, str(error))


def records_of(folder: AttemptFolder) -> list[ProcessRecord]:
    """The processes of an attempt; none where one can't be read: that proves nobody's death."""
    try:
        return folder.processes()
    except (OSError, ValueError):
        logger.warning("job %s: a process's record can't be read", folder.owner, exc_info=True)
        return []


def guarded(
    step: Callable[Concatenate[Job, More], Answer],
    job: Job,
    *arguments: More.args,
    **options: More.kwargs,
) -> Answer | None:
    """One job's trouble is its own: the others are looked at all the same."""
    try:
        return step(job, *arguments, **options)
    except StaleJobError:
        return None  # changed meanwhile, by a user or another replica: the next look sees it
    except (ClusterUnavailableError, TrackingUnavailableError) as error:
        logger.warning("job %s: %s", job.id, error)
    except Exception:
        logger.exception("job %s", job.id)
    return None
