"""Makes views of the queue's records and of what the worker left in the attempt's folder."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from service.api.views import (
    AttemptView,
    EventView,
    JobItem,
    JobLinks,
    JobView,
    MlflowView,
    Phase,
    ProgressView,
    ResultView,
)
from service.queue.job import Attempt, Desired, Event, Job, Kind, State
from workers.attempt import AttemptFolder, Progress, Result, hint_for

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_ENDED: Mapping[State, Phase] = {
    State.PAUSED: "paused",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


_BACKED_OFF = "backs off"
"""How the reconciler's word on a job begins whose time may have come since."""


class Presenter:
    """Presents jobs as they are at `now`, by the database's clock."""

    def __init__(
        self, storage: Path, mlflow_link: str, now: float, positions: Mapping[str, int]
    ) -> None:
        self.storage = storage
        self.mlflow_link = mlflow_link
        self.now = now
        self.positions = positions

    def job(self, job: Job) -> JobView:
        """All of a job."""
        spec = job.spec.model_dump(mode="json", by_alias=True)
        return JobView(**dict(self.item(job)), spec=spec)

    def item(self, job: Job) -> JobItem:
        """A job as it stands in a list."""
        progress, heartbeat = self._progress(job)
        return JobItem(
            id=job.id,
            kind=job.kind,
            name=job.spec.name,
            experiment=job.spec.experiment,
            labels=job.spec.labels,
            priority=job.spec.priority,
            owner=job.owner,
            state=job.state,
            phase=phase(job, progress, self.now),
            desired=job.desired,
            reason=job.reason,
            evidence=job.evidence,
            hint=hint_for(job.reason, failed=job.state is State.FAILED),
            waiting_reason=waiting_reason(job, self.positions.get(job.id), self.now),
            position=self.positions.get(job.id),
            attempt=job.attempt,
            progress=_progress_view(progress, heartbeat) if progress else None,
            result=_result_view(job),
            mlflow=self._mlflow(job),
            created_at=_time(job.created_at),
            updated_at=_time(job.updated_at),
            started_at=_optional_time(job.started_at),
            finished_at=_optional_time(job.finished_at),
            not_before=_optional_time(job.not_before),
            links=_links(job),
        )

    def attempt(self, attempt: Attempt) -> AttemptView:
        """One try to run a job."""
        until = self.now if attempt.ended_at is None else attempt.ended_at
        return AttemptView(
            number=attempt.number,
            created_at=_time(attempt.created_at),
            submitted_at=_optional_time(attempt.submitted_at),
            ended_at=_optional_time(attempt.ended_at),
            duration_s=round(max(0.0, until - attempt.created_at), 1),
            resumed_step=attempt.resumed_step,
            reason=attempt.reason,
            evidence=attempt.evidence or "",
            hint=hint_for(attempt.reason),
            stop_reason=attempt.stop_reason,
            stop_requested_at=_optional_time(attempt.stop_requested_at),
            killed_at=_optional_time(attempt.killed_at),
            node_id=attempt.node_id,
            logs=f"/v1/jobs/{attempt.job_id}/logs?attempt={attempt.number}",
        )

    def _progress(self, job: Job) -> tuple[Progress | None, float | None]:
        if job.attempt == 0 or job.state is State.QUEUED:
            return None, None
        folder = AttemptFolder(self.storage, job.id, job.attempt)
        return _readable(folder.read_progress), _readable(folder.heartbeat)

    def _mlflow(self, job: Job) -> MlflowView | None:
        if job.experiment_id is None or job.run_id is None:
            return None
        url = self.run_url(job.experiment_id, job.run_id)
        return MlflowView(
            experiment_id=job.experiment_id, run_id=job.run_id, url=url, closed=job.run_closed
        )

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """A run's page in MLflow."""
        return f"{self.mlflow_link}/#/experiments/{experiment_id}/runs/{run_id}"


def phase(job: Job, progress: Progress | None, now: float) -> Phase:
    """A finer word for the job's state."""
    if job.state.terminal or (job.state is State.PAUSED and job.desired is Desired.PAUSE):
        return _ENDED[job.state]
    if job.desired is Desired.CANCEL:
        return "cancelling"
    if job.desired is Desired.PAUSE:
        return "pausing"
    if job.state in (State.QUEUED, State.PAUSED):
        return "waiting-to-retry" if (job.not_before or 0) > now else "waiting"
    if job.current is not None and job.current.gone_since is not None:
        return "suspect"
    if job.current is not None and job.current.stop_requested_at is not None:
        return "stopping"
    if progress is not None:
        return progress.phase
    submitted = job.current is not None and job.current.submitted_at is not None
    return "starting" if submitted else "dispatching"


def waiting_reason(job: Job, position: int | None, now: float) -> str | None:
    """Why a queued job is not running: the reconciler's word, else what follows from its place.

    Of a long queue the reconciler looks at the head alone.
    """
    if job.state is not State.QUEUED:
        return None
    if job.desired is not Desired.RUN:
        return f"is about to be {'paused' if job.desired is Desired.PAUSE else 'cancelled'}"
    if job.not_before is not None and job.not_before > now:
        again = datetime.fromtimestamp(job.not_before, UTC).strftime("%H:%M:%S UTC")
        return f"waits until {again} before its next attempt"
    if job.waiting_reason and not job.waiting_reason.startswith(_BACKED_OFF):
        return job.waiting_reason
    if position is None or position == 1:
        return "next in the queue; it is about to be looked at"
    ahead = position - 1
    return f"{ahead} job{' is' if ahead == 1 else 's are'} ahead in the queue"


def event_view(event: Event) -> EventView:
    """A line of history."""
    return EventView(
        id=event.id,
        job=event.job_id,
        attempt=event.attempt,
        at=_time(event.at),
        type=event.type,
        message=event.message,
        data=event.data,
    )


def _progress_view(progress: Progress, heartbeat: float | None) -> ProgressView:
    done, all_of_it = progress.step, progress.steps
    if progress.trials is not None:
        done, all_of_it = progress.trials.ended, progress.trials.total
    fraction = done / all_of_it if all_of_it > 0 else 0.0
    return ProgressView(
        **progress.model_dump(exclude={"schema_version", "phase", "first_step_at"}),
        fraction=min(1.0, max(0.0, fraction)),
        heartbeat_age_s=None if heartbeat is None else max(0.0, round(time.time() - heartbeat, 1)),
    )


def _result_view(job: Job) -> ResultView | None:
    if job.result is None:
        return None
    try:
        result = Result.model_validate(job.result)
    except ValidationError:
        logger.warning("job %s has an unreadable result", job.id, exc_info=True)
        return None
    return ResultView(
        metrics={k: v if math.isfinite(v) else None for k, v in result.metrics.items()},
        checkpoints=dict(result.checkpoints),
        artifacts=result.artifacts,
        tracking=result.tracking,
    )


def _links(job: Job) -> JobLinks:
    base = f"/v1/jobs/{job.id}"
    return JobLinks(
        self=base,
        cancel=f"{base}/cancel",
        pause=f"{base}/pause",
        resume=f"{base}/resume",
        retry=f"{base}/retry",
        logs=f"{base}/logs",
        events=f"{base}/events",
        attempts=f"{base}/attempts",
        search=f"/v1/searches/{job.id}" if job.kind is Kind.SEARCH else None,
    )


def _readable(read: Callable[[], Found]) -> Found | None:
    """None where the worker's file can't be read: the job's other data are still good."""
    try:
        return read()
    except (OSError, ValueError):
        logger.warning("an attempt's folder can't be read", exc_info=True)
        return None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _optional_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
