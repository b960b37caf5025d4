"""What the endpoints receive: the service, as the caller of this request may use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Request

from service.api.gate import Gate
from service.api.present import Presenter
from service.api.present_search import SearchPresenter, settled
from service.capacity import Capacity
from service.errors import JobNotFoundError, ScopeMissingError, SearchNotFoundError
from service.queue.adding import Submitted
from service.queue.job import AnySpec, Attempt, Desired, Event, Job, Kind
from service.queue.store import JobFilter, Page, Store
from service.queue.tokens import TokenStore
from service.settings import Settings
from service.tokens import Caller, Scope
from service.trial_tables import TrialTables
from workers.trials import Trial


class Probe(Protocol):
    """Something that can say whether it answers."""

    def ping(self) -> None:
        """Raise an error that says why it does not."""


@dataclass(frozen=True)
class Services:
    """The parts of the application, whoever calls; endpoints about jobs take `Given`."""

    store: Store
    settings: Settings
    probes: Mapping[str, Probe]
    wake: Callable[[], None]
    """Makes the reconciler look at once."""
    capacity: Capacity
    """What the cluster could ever hold."""
    gate: Gate | None = None
    """Verifies tokens; None where none are asked for."""
    tables: TrialTables = field(default_factory=TrialTables)
    """The trials of searches."""


class ForCaller:
    """The service as one caller may use it: no method finds another owner's job.

    Such a job is not there, in the words in which one that does not exist is not. Administrators
    find everybody's. The store itself stays out of the endpoints' reach.
    """

    def __init__(self, services: Services, caller: Caller) -> None:
        self._services = services
        self._store = services.store
        self.caller = caller
        self.settings = services.settings
        self.wake = services.wake
        self.capacity = services.capacity

    # ------------------------------------------------------------------------------- looking

    def job(self, job_id: str) -> Job:
        """Raises JobNotFoundError."""
        return self._store.get(job_id, owner=self.caller.sees_only)

    def search(self, search_id: str) -> Job:
        """Raises SearchNotFoundError, also for a job that is no search."""
        try:
            job = self.job(search_id)
        except JobNotFoundError:
            raise SearchNotFoundError(f"there is no search {search_id[:40]!r}") from None
        if job.kind is not Kind.SEARCH:
            hint = f"it is a training job: GET /v1/jobs/{job.id} or `capsctl show {job.id}`"
            raise SearchNotFoundError(f"job {job.id} is no search", hint=hint)
        return job

    def jobs(self, filter: JobFilter, cursor: str | None, limit: int) -> Page:
        """A page of jobs, the newest first. Raises CursorInvalidError."""
        return self._store.list(filter, cursor, limit, sees_only=self.caller.sees_only)

    def attempts(self, job_id: str) -> list[Attempt]:
        """Raises JobNotFoundError."""
        return self._store.attempts(job_id, owner=self.caller.sees_only)

    def events(self, job_id: str, after: int, limit: int) -> list[Event]:
        """Raises JobNotFoundError."""
        return self._store.events(self.job(job_id).id, after, limit)

    def trials(self, search: Job) -> list[Trial]:
        """The trials of a search, by number."""
        root = self.settings.storage_root
        return settled(search, self._services.tables.trials(root, search.id, search.attempt))

    def presenter(self, jobs: list[Job]) -> Presenter:
        """A presenter that knows the places of `jobs` in the queue."""
        queued = [job.id for job in jobs if job.state == "QUEUED"]
        positions = self._store.positions(queued) if queued else {}
        now = self._store.about_now()
        return Presenter(self.settings.storage_root, self.settings.mlflow_link, now, positions)

    def search_presenter(self, jobs: list[Job]) -> SearchPresenter:
        """A presenter of searches."""
        return SearchPresenter(self.presenter(jobs))

    # ---------------------------------------------------------------------------- submitting

    def submit(self, spec: AnySpec, key: str | None, request: str | None) -> Submitted:
        """Queue a job of the caller's; see `Store.submit`."""
        owner = self.caller.owner
        return self._store.submit(spec, owner=owner, idempotency_key=key, request=request)

    def submitted_before(self, key: str, request: str) -> Job | None:
        """What the caller has queued with this key; see `Store.find_keyed`."""
        return self._store.find_keyed(self.caller.owner, key, request)

    # ------------------------------------------------------------------------------ steering

    def set_desired(self, job_id: str, desired: Desired) -> Job:
        """Raises JobNotFoundError, JobEndedError."""
        return self._store.set_desired(job_id, desired, owner=self.caller.sees_only)

    def retry(self, job_id: str) -> Job:
        """Raises JobNotFoundError, JobConflictError."""
        return self._store.retry(job_id, owner=self.caller.sees_only)

    def reopen(self, search_id: str) -> Job:
        """Raises JobNotFoundError, JobConflictError."""
        return self._store.reopen(search_id, owner=self.caller.sees_only)

    def request_delete(self, job_id: str) -> None:
        """Raises JobNotFoundError, JobActiveError, JobConflictError."""
        self._store.request_delete(job_id, owner=self.caller.sees_only)

    # -------------------------------------------------------------------------------- tokens

    @property
    def tokens(self) -> TokenStore:
        """Everybody's tokens. Raises ScopeMissingError unless it is an administrator who asks."""
        if self.caller.scope is not Scope.ADMIN:
            raise ScopeMissingError("the scope `admin` is needed")
        return self._store.tokens

    def revoke_token(self, token_id: str) -> None:
        """Raises ScopeMissingError, TokenNotFoundError."""
        self.tokens.revoke(token_id)
        if self._services.gate is not None:
            self._services.gate.forget(token_id)


async def _services(request: Request) -> Services:
    # Not a plain function, here and in other dependencies that wait for nothing: FastAPI would
    # have a thread run it.
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _for_caller(request: Request) -> ForCaller:
    # Noted by `service.api.access`; fails where the route stands behind nothing that notes it.
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return ForCaller(await _services(request), caller)


Parts = Annotated[Services, Depends(_services)]
"""For routes that know no caller: those that tell whether the service lives."""
Given = Annotated[ForCaller, Depends(_for_caller)]
