"""What the endpoints receive from the composition root."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Request

from service.api.present import Presenter
from service.api.present_search import SearchPresenter, settled
from service.capacity import Capacity
from service.errors import JobNotFoundError, SearchNotFoundError
from service.queue.job import Job, Kind
from service.queue.store import Store
from service.settings import Settings
from service.trial_tables import TrialTables
from workers.trials import Trial


class Probe(Protocol):
    """Something that can say whether it answers."""

    def ping(self) -> None:
        """Raise an error that says why it does not."""


@dataclass(frozen=True)
class Services:
    """The parts that the endpoints call."""

    store: Store
    settings: Settings
    probes: Mapping[str, Probe]
    wake: Callable[[], None]
    """Makes the reconciler look at once."""
    capacity: Capacity
    """What the cluster could ever hold."""
    tables: TrialTables = field(default_factory=TrialTables)
    """The trials of searches."""

    def presenter(self, jobs: list[Job]) -> Presenter:
        """A presenter that knows the places of `jobs` in the queue."""
        queued = [job.id for job in jobs if job.state == "QUEUED"]
        positions = self.store.positions(queued) if queued else {}
        now = self.store.about_now()
        return Presenter(self.settings.storage_root, self.settings.mlflow_link, now, positions)

    def search_presenter(self, jobs: list[Job]) -> SearchPresenter:
        """A presenter of searches."""
        return SearchPresenter(self.presenter(jobs))

    def search(self, search_id: str) -> Job:
        """Raises SearchNotFoundError, also for a job that is no search."""
        try:
            job = self.store.get(search_id)
        except JobNotFoundError:
            raise SearchNotFoundError(f"there is no search {search_id[:40]!r}") from None
        if job.kind is not Kind.SEARCH:
            hint = f"it is a training job: GET /v1/jobs/{job.id} or `capsctl show {job.id}`"
            raise SearchNotFoundError(f"job {job.id} is no search", hint=hint)
        return job

    def trials(self, job: Job) -> list[Trial]:
        """The trials of a search, by number."""
        return settled(job, self.tables.trials(self.settings.storage_root, job.id, job.attempt))


async def _services(request: Request) -> Services:
    # Not a plain function, here and in other dependencies that wait for nothing: FastAPI would
    # have a thread run it.
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Given = Annotated[Services, Depends(_services)]
