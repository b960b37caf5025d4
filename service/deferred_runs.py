"""`service.runs`, loaded when it is first needed.

MLflow's package takes longer to load than all the rest of the control plane. The API serves before
that, so a control plane that was killed is back sooner.
"""

from typing import TYPE_CHECKING

import httpx

from service.errors import TrackingUnavailableError
from service.queue.job import Job
from workers.attempt import AttemptFolder

if TYPE_CHECKING:
    from service.runs import MlflowRuns

PING_TIMEOUT_S = 2.0
"""A server that hangs costs each look of the reconciler so long, now and then."""


class DeferredRuns:
    """The same methods as `service.runs.MlflowRuns`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._loaded: MlflowRuns | None = None

    def ping(self) -> None:
        """Raises TrackingUnavailableError unless the server answers."""
        ping(self.uri)

    def ensure(self, job: Job) -> tuple[str, str]:
        """The job's (experiment id, run id). Raises TrackingUnavailableError."""
        return self._runs().ensure(job)

    def drop(self, run_id: str) -> None:
        """End a run that was made for a job which has another. Raises TrackingUnavailableError."""
        self._runs().drop(run_id)

    def close(self, job: Job, folder: AttemptFolder | None) -> bool:
        """False while there is more to do. Raises TrackingUnavailableError."""
        return self._runs().close(job, folder)

    def _runs(self) -> "MlflowRuns":
        if self._loaded is None:
            self.ping()  # nothing is loaded for a server that is away
            from service.runs import MlflowRuns

            self._loaded = MlflowRuns(self.uri)
        return self._loaded


def ping(uri: str) -> None:
    """Raises TrackingUnavailableError unless the server answers."""
    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=PING_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise TrackingUnavailableError(f"MLflow at {uri} does not answer") from error
