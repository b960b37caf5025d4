"""Which waiting jobs start now, and why the others do not."""

from service import reconcile as decide
from service.demand import need_of
from service.errors import TrackingUnavailableError
from service.placement import Placement
from service.queue.job import Job
from service.queue.store import NewEvent
from service.reconciler.finishing import Finishing
from service.reconciler.orders import submit, wait_for_init
from service.reconciler.parts import Parts, Sight, guarded

ENOUGH_WITHOUT_ROOM = 50
"""Each job that finds no room keeps its share back: so many more would find none either."""
PAGE = 50
LOOKED_AT = 1000
"""Jobs of the queue's head in one tick: what waits for another job's weights holds nobody up."""
ASK_MLFLOW_AGAIN_S = 5.0
"""A call that gets no answer takes seconds, which running jobs wait for too."""


class WaitingJobs:
    """Acts on jobs that are queued or paused."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._finishing = Finishing(parts)
        self._without_mlflow: tuple[float, str] | None = None
        """When it was last asked in vain, and what was said."""

    def act(self, running: list[Job], sight: Sight) -> None:
        """Settle what the users have changed their minds about, then start what fits."""
        now = self._parts.now()
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
        self._start_what_fits(placement, sight.seen.session)

    def _start_what_fits(self, placement: Placement, session: str) -> None:
        looked_at, without_room = 0, 0
        last: Job | None = None
        while looked_at < LOOKED_AT and without_room < ENOUGH_WITHOUT_ROOM:
            now = self._parts.now()
            page = self._parts.store.claimable(now, last, PAGE)
            for job in page:
                found_room = guarded(self._place, job, now, placement, session)
                without_room += found_room is False
                if without_room >= ENOUGH_WITHOUT_ROOM:
                    break
            if not page:
                break
            last, looked_at = page[-1], looked_at + len(page)

    def _place(self, job: Job, now: float, placement: Placement, session: str) -> bool:
        """Start a job if there is room for it; false if there is none."""
        if obstacle := wait_for_init(self._parts, job):
            self._decide(job, now, obstacle)
            return True
        obstacle = placement.place(need_of(job.spec))
        self._decide(job, now, obstacle, session)
        return not obstacle

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
        if job.waiting_reason != reason:
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
                experiment_id, run_id = self._parts.runs.ensure(job)
            except TrackingUnavailableError as error:
                self._without_mlflow = self._parts.now(), str(error)
                self._wait(job, str(error))
                return
            job = self._parts.store.update(job, experiment_id=experiment_id, run_id=run_id)
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
