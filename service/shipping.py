"""What a job's workers left unsent when they died: sent to MLflow by the control plane.

Metric points lie in the attempts' spools, with a note of how far they are sent. Pictures, models
and checkpoints stay in the attempts' folders; the run says that they may be missing.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from pydantic import ValidationError

from service.queue.job import Job, Kind
from workers.attempt import AttemptFolder, SearchAttempt, VersionMismatchError
from workers.child_runs import ChildRuns
from workers.courier import send_points
from workers.search_specs import SearchSpec
from workers.spool import Outgoing, Point, ship_all, spools_of
from workers.trials import Trial, TrialState, TrialTable, read_trials, trial_folder

logger = logging.getLogger(__name__)

Refused = Callable[[Exception], bool]
"""Whether MLflow's answer will be the same next time, as of a run that somebody deleted."""


class Shipping:
    """Sends what is left, a bounded part of it a call; it may be called again at any time."""

    def __init__(self, client: MlflowClient, refused: Refused) -> None:
        self._client = client
        self._refused = refused
        self._searches: dict[str, tuple[int, ChildRuns]] = {}
        """Runs of trials by the search's id, with its attempt, until all is sent."""

    def ship(self, job: Job, folder: AttemptFolder, until: float) -> bool:
        """Send for as long as there is time.

        Args:
            job: It has ended, and its last attempt's processes are gone.
            folder: Of its last attempt.
            until: When to leave off, by the monotonic clock.

        Returns:
            Whether nothing is left. What MLflow refuses counts as sent.
        """
        return self._ship_own(job, folder, until) and self._ship_trials(job, folder, until)

    def _ship_own(self, job: Job, folder: AttemptFolder, until: float) -> bool:
        run_id = job.run_id
        assert run_id is not None

        def send(points: list[Point]) -> bool:
            try:
                send_points(self._client, run_id, points)
            except Exception as error:
                if not self._refused(error):
                    raise
                logger.warning("job %s: MLflow refuses %d points: %s", job.id, len(points), error)
            return True

        attempts = [*reversed(folder.earlier()), folder]
        files = [file for each in attempts for file in spools_of(each.metrics)]
        return ship_all([Outgoing(file, run_id) for file in files], send, until)

    def _ship_trials(self, job: Job, folder: AttemptFolder, until: float) -> bool:
        if job.kind is not Kind.SEARCH:
            return True
        attempt, children = self._searches.get(job.id, (0, None))
        if children is None or attempt != job.attempt:
            children = ChildRuns(_orders(job), LeftTrials(job, folder))
            self._searches[job.id] = (job.attempt, children)
        assert job.run_id is not None
        done = children.ship_until(self._client, job.run_id, until)
        if done:
            del self._searches[job.id]
        return done


def completeness(folder: AttemptFolder) -> str:
    """What MLflow has of a job whose metrics were all sent: `complete`, or what may be missing."""
    try:
        result = folder.read_result()
    except (ValidationError, VersionMismatchError):
        result = None
    if result is not None and result.tracking == "complete":
        return "complete"
    said = "its last attempt left no result" if result is None else result.tracking
    return f"incomplete: of pictures, models and checkpoints some may be missing; {said}"[:1000]


class LeftTrials:
    """The trials of a search whose last driver is gone; what did not end was cut off with it."""

    def __init__(self, job: Job, folder: AttemptFolder) -> None:
        self._job = job
        self._folder = folder
        self._table = read_trials(folder)
        for trial in list(self._table.trials.values()):
            if not trial.state.ended:
                at = folder.heartbeat() or time.time()
                self._change(trial, {"state": TrialState.CANCELLED, "ended_at": at})

    def table(self) -> TrialTable:
        """All that is known of the trials."""
        return TrialTable(dict(self._table.trials), self._table.reports)

    def folder(self, number: int) -> AttemptFolder:
        """A trial's own folder, in the search's last attempt."""
        return trial_folder(self._folder.storage, self._job.id, number, self._job.attempt)

    def update(self, number: int, **changes: Any) -> Trial:
        """Note it in memory: in the book only its driver writes."""
        return self._change(self._table.trials[number], changes)

    def _change(self, trial: Trial, changes: dict[str, Any]) -> Trial:
        changed = trial.model_copy(update=changes)
        self._table.add_trial(changed)
        return changed


def _orders(job: Job) -> SearchAttempt:
    """What the search's driver was to do, as far as its trials' runs go."""
    assert isinstance(job.spec, SearchSpec)
    assert job.experiment_id is not None
    assert job.run_id is not None
    return SearchAttempt(
        package_version="",
        job=job.id,
        attempt=job.attempt,
        spec=job.spec,
        tracking_uri="",
        experiment_id=job.experiment_id,
        run_id=job.run_id,
    )
