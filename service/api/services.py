"""What the endpoints receive from the composition root."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from service.api.present import Presenter
from service.queue.job import Job
from service.queue.store import Store
from service.settings import Settings


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

    def presenter(self, jobs: list[Job]) -> Presenter:
        """A presenter that knows the places of `jobs` in the queue."""
        positions = self.store.positions([job.id for job in jobs if job.state == "QUEUED"])
        settings = self.settings
        return Presenter(settings.storage_root, settings.mlflow_link, self.store.now(), positions)


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Given = Annotated[Services, Depends(_services)]
