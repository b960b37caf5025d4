"""The trials' runs in MLflow: children of the search's run, made, filled and closed.

Done by the search's driver, and by the control plane where the last driver died before it. What is
sent comes from the book and the trials' folders; whoever goes on sends what may be missing, and
MLflow ignores what it has.
"""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workers.attempt import AttemptFolder, SearchAttempt
from workers.courier import may_pass, send_points
from workers.parameters import PER_BATCH, flatten
from workers.spool import Outgoing, Point
from workers.trials import Trial, TrialState, TrialTable

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

STATUS = {
    TrialState.SUCCEEDED: "FINISHED",
    TrialState.PRUNED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.CANCELLED: "KILLED",
}
TAG_PARENT = "mlflow.parentRunId"
TAG_SEARCH = "caps.search"
TAG_TRIAL = "caps.trial"


class Book(Protocol):
    """Where the trials stand: the driver's, or what a dead driver left of it."""

    def table(self) -> TrialTable:
        """All that is known of the trials."""

    def folder(self, number: int) -> AttemptFolder:
        """A trial's own folder, in the search's current attempt."""

    def update(self, number: int, **changes: Any) -> Trial:
        """Note what has changed about a trial."""


class ChildRuns:
    """One run a trial. Its methods are called by one thread alone."""

    def __init__(self, attempt: SearchAttempt, book: Book) -> None:
        self._attempt = attempt
        self._book = book
        self._spools: dict[Path, Outgoing] = {}
        self._found: dict[int, str] | None = None
        self._open: set[str] = set()
        self.given_up: dict[int, str] = {}
        """Trials whose run MLflow refuses, as when somebody deleted it, and its words."""

    def ship(self, client: "MlflowClient", parent: str) -> None:
        """Send what is new; safe to repeat when MLflow was away in the middle of it."""
        self.ship_until(client, parent, math.inf)

    def ship_until(self, client: "MlflowClient", parent: str, until: float) -> bool:
        """The same for as long as there is time, by the monotonic clock; whether all is sent."""
        for number, trial in sorted(self._book.table().trials.items()):
            never_ran = trial.started_at is None and trial.run_id is None
            if trial.shipped or never_ran or number in self.given_up:
                continue
            if time.monotonic() >= until:
                return False
            try:
                self._ship_one(client, parent, trial)
            except Exception as error:
                self._found = None  # a run may have been made although the answer was lost
                if may_pass(error):
                    raise
                logger.exception("trial %d is not tracked any more", number)
                self.given_up[number] = str(error)
        return True

    def _ship_one(self, client: "MlflowClient", parent: str, trial: Trial) -> None:
        run_id = trial.run_id or self._make(client, parent, trial)
        if trial.state is TrialState.RUNNING and run_id not in self._open:
            client.update_run(run_id, status="RUNNING")  # perhaps an earlier attempt ended it
            self._open.add(run_id)
        self._send(client, run_id, trial.number)
        if trial.state.ended:
            self._end(client, run_id, trial)

    def _make(self, client: "MlflowClient", parent: str, trial: Trial) -> str:
        """The trial's run: found, if an attempt died before it noted the run, or made."""
        if self._found is None:
            self._found = dict(_children(client, self._attempt.experiment_id, parent))
        run_id = self._found.get(trial.number)
        if run_id is None:
            run = client.create_run(
                self._attempt.experiment_id,
                run_name=f"{self._attempt.spec.name}-{trial.number:04}",
                start_time=int((trial.started_at or 0) * 1000),
                tags=self._tags(parent, trial),
            )
            run_id = self._found[trial.number] = str(run.info.run_id)
            self._open.add(run_id)
        spec = self._attempt.spec.variant(trial.values, trial.seed)
        _log_params(client, run_id, list(flatten(spec)))
        self._book.update(trial.number, run_id=run_id)
        return run_id

    def _tags(self, parent: str, trial: Trial) -> dict[str, str]:
        values = "\n".join(f"- `{path}`: {value}" for path, value in trial.values.items())
        seed = f", seed {trial.seed}" if self._attempt.spec.seeds > 1 else ""
        note = (
            f"Trial {trial.number} of search `{self._attempt.job}`: configuration "
            f"{trial.configuration}{seed}.\n\n{values}"
        )
        return {
            **self._attempt.spec.labels,
            TAG_PARENT: parent,
            TAG_SEARCH: self._attempt.job,
            TAG_TRIAL: str(trial.number),
            "caps.configuration": str(trial.configuration),
            "mlflow.source.name": "capsnet",
            "mlflow.note.content": note,
        }

    def _send(self, client: "MlflowClient", run_id: str, number: int) -> None:
        def send(points: list[Point]) -> bool:
            send_points(client, run_id, points)
            return True

        folder = self._book.folder(number)
        for each in [*reversed(folder.earlier()), folder]:
            if each.metrics not in self._spools:
                self._spools[each.metrics] = Outgoing(each.metrics, run_id)
            self._spools[each.metrics].ship(send)

    def _end(self, client: "MlflowClient", run_id: str, trial: Trial) -> None:
        at = int((trial.ended_at or 0) * 1000)
        if trial.score is not None:  # its time is the trial's, so that a second sending adds none
            score = Point("score", trial.score, at, trial.score_epoch or 0)
            send_points(client, run_id, [score])
        told = {
            "caps.state": trial.state.value,
            "caps.reason": "" if trial.reason is None else trial.reason.value,
            "caps.evidence": trial.evidence[:1000],
        }
        for name, value in told.items():  # also what is empty now: the trial may have been retried
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, STATUS[trial.state], end_time=at)
        self._book.update(trial.number, shipped=True)


def _log_params(client: "MlflowClient", run_id: str, pairs: list[tuple[str, str]]) -> None:
    from mlflow.entities import Param

    for start in range(0, len(pairs), PER_BATCH):
        params = [Param(name, value) for name, value in pairs[start : start + PER_BATCH]]
        client.log_batch(run_id, params=params)


def _children(client: "MlflowClient", experiment: str, parent: str) -> Iterator[tuple[int, str]]:
    """Numbers of trials and the runs that an earlier attempt made of them."""
    token = None
    while True:
        condition = f"tags.`{TAG_PARENT}` = '{parent}'"
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        for run in page:
            if TAG_TRIAL in run.data.tags:
                yield int(run.data.tags[TAG_TRIAL]), str(run.info.run_id)
        token = page.token
        if not token:
            return
