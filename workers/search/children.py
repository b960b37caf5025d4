"""The trials' runs in MLflow: children of the search's run, made, filled and closed by the driver.

What is sent comes from the book and the trials' folders, so a search that is gone on with sends
again what may be missing, and MLflow ignores what it has.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workers.attempt import SearchAttempt
from workers.parameters import PER_BATCH, flatten
from workers.search.book import SearchBook
from workers.spool import points_from
from workers.tracking import may_pass, send_points
from workers.trials import Trial, TrialState

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


class ChildRuns:
    """One run a trial. Its methods are called by the tracker's thread alone."""

    def __init__(self, attempt: SearchAttempt, book: SearchBook) -> None:
        self._attempt = attempt
        self._book = book
        self._offsets: dict[Path, int] = {}
        self._found: dict[int, str] | None = None
        self._open: set[str] = set()
        self.given_up: dict[int, str] = {}
        """Trials whose run MLflow refuses, as when somebody deleted it, and its words."""

    def ship(self, client: "MlflowClient", parent: str) -> None:
        """Send what is new; safe to repeat when MLflow was away in the middle of it."""
        for number, trial in sorted(self._book.table().trials.items()):
            never_ran = trial.started_at is None and trial.run_id is None
            if trial.shipped or never_ran or number in self.given_up:
                continue
            try:
                self._ship_one(client, parent, trial)
            except Exception as error:
                self._found = None  # a run may have been made although the answer was lost
                if may_pass(error):
                    raise
                logger.exception("trial %d is not tracked any more", number)
                self.given_up[number] = str(error)

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
        folder = self._book.folder(number)
        for each in [*reversed(folder.earlier()), folder]:
            offset = self._offsets.get(each.metrics, 0)
            points, behind = points_from(each.metrics, offset)
            send_points(client, run_id, points)
            self._offsets[each.metrics] = behind

    def _end(self, client: "MlflowClient", run_id: str, trial: Trial) -> None:
        at = int((trial.ended_at or 0) * 1000)
        if trial.score is not None:  # its time is the trial's, so that a second sending adds none
            client.log_metric(run_id, "score", trial.score, at, trial.score_epoch or 0)
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
