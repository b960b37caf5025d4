"""Which waiting jobs start now, and why the others do not."""

from dataclasses import dataclass, field

from service import reconcile as decide
from service.demand import need_of
from service.errors import TrackingUnavailableError
from service.placement import Placement
from service.queue.job import Job
from service.queue.store import NewEvent
from service.reconciler.finishing import Finishing
from service.reconciler.orders import submit, wait_for_job, with_run
from service.reconciler.parts import Parts, Sight, guarded

PAGE = 50
LOOKED_AT = 500
"""Jobs of the queue's head in one tick, and as many of those further back, in turn: whoever finds
no room on idle nodes, or waits for another job's weights, holds nobody up for good."""
ENOUGH_WITHOUT_ROOM = 50
"""So many are told why they wait, where no node has a core left for anybody."""
TOLD = 50
"""Jobs in one tick whose reason to wait is written anew; the others' turn comes."""
ASK_MLFLOW_AGAIN_S = 5.0
"""A call that gets no answer takes seconds, which running jobs wait for too."""


@dataclass
class Look:
    """One tick's look at the queue."""

    placement: Placement
    session: str
    """The cluster's."""
    without_room: int = 0
    awaited: dict[str, str] = field(default_factory=dict)
    """By jobs whose weights others begin with: why these must wait; empty if they need not."""

    @property
    def over(self) -> bool:
        """Whether looking on is in vain."""
        return self.placement.full and self.without_room >= ENOUGH_WITHOUT_ROOM


class WaitingJobs:
    """Acts on jobs that are queued or paused."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._finishing = Finishing(parts)
        self._without_mlflow: tuple[float, str] | None = None
        """When it was last asked in vain, and what was said."""
        self._further: Job | None = None
        """Up to where the queue was looked at behind its head."""
        self._told = 0

    def act(self, running: list[Job], sight: Sight) -> None:
        """Settle what the users have changed their minds about, then start what fits."""
        now = self._parts.now()
        self._told = 0
        for job in self._parts.store.unsettled():
            guarded(self._decide, job, now)
        if sight.seen is None:
            for job in self._parts.store.claimable(now, limit=PAGE):
                guarded(self._decide, job, now, sight.problem)
            return
        placement = Placement(list(sight.seen.nodes))
        for job in running:
            assert job.current is not None
            node = sight.seen.job(job.current.submission_id).node_id
            placement.occupy(need_of(job.spec), node)
        self._start_what_fits(Look(placement, sight.seen.session))

    def _start_what_fits(self, look: Look) -> None:
        head = self._look_behind(None, look)
        if head is None or look.over:
            return
        further = self._further
        begin = further if further is not None and _is_behind(further, head) else head
        self._further = self._look_behind(begin, look)

    def _look_behind(self, last: Job | None, look: Look) -> Job | None:
        """Start what fits of the next jobs; up to where, or None at the queue's end."""
        looked_at = 0
        while looked_at < LOOKED_AT and not look.over:
            now = self._parts.now()
            page = self._parts.store.claimable(now, last, PAGE)
            if not page:
                return None
            for job in page:
                guarded(self._place, job, now, look)
                last, looked_at = job, looked_at + 1
                if look.over:
                    break
        return last

    def _place(self, job: Job, now: float, look: Look) -> None:
        """Start a job if there is room for it."""
        obstacle = self._awaited(job, look)
        if not obstacle:
            obstacle = look.placement.place(need_of(job.spec))
            look.without_room += bool(obstacle)
        self._decide(job, now, obstacle, look.session)

    def _awaited(self, job: Job, look: Look) -> str:
        """Why its initial weights are not there yet, if so."""
        source = job.training.init_from
        if source is None or source.job is None:
            return ""
        if source.job not in look.awaited:
            look.awaited[source.job] = wait_for_job(self._parts, source.job)
        return look.awaited[source.job]

    def _decide(self, job: Job, now: float, obstacle: str = "", session: str | None = None) -> None:
        action = decide.reconcile_waiting(job, obstacle, now)
        match action:
            case decide.Nothing():
                pass
            case decide.Wait():
                self._wait(job, action.reason)
            case decide.Dispatch():
                self._dispatch(job, session)
            case decide.Finish():
                self._finishing.finish(job, action, None, now)
            case decide.Requeue():
                self._finishing.requeue(job, action, now)
            case _:
                raise AssertionError(f"{action} is not for a waiting job")

    def _wait(self, job: Job, reason: str) -> None:
        if job.waiting_reason != reason and self._told < TOLD:
            self._told += 1
            self._parts.store.update(job, waiting_reason=reason)

    def _dispatch(self, job: Job, session: str | None) -> None:
        """Begin an attempt. The cluster's session is committed with it, before Ray is called."""
        if job.run_id is None:
            if problem := self._mlflow_is_away():
                self._wait(job, problem)
                return
            if job.experiment_id is None:
                job = self._parts.store.update(job, experiment_id="")
            try:
                job = with_run(self._parts, job)
            except TrackingUnavailableError as error:
                self._without_mlflow = self._parts.now(), str(error)
                self._wait(job, str(error))
                return
        event = NewEvent("started", f"attempt {job.attempt + 1}")
        submit(self._parts, self._parts.store.start_attempt(job, event, session))

    def _mlflow_is_away(self) -> str:
        """What MLflow's absence was told by, as long as it need not be asked again."""
        if self._without_mlflow is None:
            return ""
        asked_at, problem = self._without_mlflow
        if abs(self._parts.now() - asked_at) < ASK_MLFLOW_AGAIN_S:
            return problem
        self._without_mlflow = None
        return ""


def _is_behind(job: Job, other: Job) -> bool:
    """In the queue's order."""
    return (-job.spec.priority, job.id) > (-other.spec.priority, other.id)
