"""The book of a search: what its driver knows of every trial, on disk as soon as it is known.

It is the one truth about the trials. Tune's own state is not kept: a search that was cut off is
gone on with from the book and from the trials' folders.
"""

import json
import logging
import math
import shutil
import threading
import time
from collections import Counter
from typing import Any

from workers.attempt import AttemptFolder, Reason, Result, TrialCounts
from workers.search_specs import SearchSpec
from workers.trials import (
    Report,
    Standing,
    Trial,
    TrialState,
    TrialTable,
    TrialWriter,
    all_reports,
    read_trials,
    standings,
    trial_folder,
    trials_file,
)

OUTCOMES = {
    "succeeded": TrialState.SUCCEEDED,
    "failed": TrialState.FAILED,
    "cancelled": TrialState.CANCELLED,
    # The search leaves and will come back: its trials go on then.
    "paused": TrialState.WAITING,
    "interrupted": TrialState.WAITING,
}
logger = logging.getLogger(__name__)

FELL = (TrialState.FAILED, TrialState.CANCELLED)
"""What a retry runs again."""


class SearchBook:
    """Trials by number; every change is written down. May be used from several threads."""

    def __init__(
        self, spec: SearchSpec, folder: AttemptFolder, search: str, attempt: int, retry_through: int
    ) -> None:
        """Open the book of an attempt with what earlier attempts knew.

        Args:
            spec: The search.
            folder: The attempt's folder.
            search: Its id.
            attempt: Number of the attempt.
            retry_through: What failed or was cut off in attempts up to this one goes on.
        """
        self.spec = spec
        self.attempt = attempt
        self._storage = folder.storage
        self._search = search
        self._lock = threading.RLock()
        self.cut_short: tuple[Reason, str] | None = None
        """Why trials that still run are stopped, if they are."""
        known = read_trials(folder)
        for trial in known.trials.values():
            void = trial.state in FELL and 0 < retry_through >= trial.attempt
            if void or not trial.state.ended:
                known.add_trial(_to_go_on_with(trial, afresh=void))
        self._writer = TrialWriter(trials_file(folder), known)
        self._catch_up()

    @property
    def total(self) -> int:
        """Trials that the search runs if nothing ends it early."""
        return self.spec.configurations * self.spec.seeds

    def table(self) -> TrialTable:
        """A copy that nobody changes."""
        with self._lock:
            known = self._writer.table
            reports = {number: list(each) for number, each in known.reports.items()}
            return TrialTable(dict(known.trials), reports)

    def trial(self, number: int) -> Trial | None:
        """What is known of a trial."""
        return self._writer.table.trials.get(number)

    def running(self) -> set[int]:
        """Numbers of the trials that run now."""
        with self._lock:
            trials = self._writer.table.trials.values()
            return {trial.number for trial in trials if trial.state is TrialState.RUNNING}

    def folder(self, number: int) -> AttemptFolder:
        """The trial's own folder in this attempt."""
        return trial_folder(self._storage, self._search, number, self.attempt)

    def standings(self) -> list[Standing]:
        """Configurations, the best first."""
        return standings(self.table().trials.values(), self.spec.mode)

    def standing(self, configuration: int) -> Standing | None:
        """One configuration's, once all its trials have ended."""
        found = next((s for s in self.standings() if s.configuration == configuration), None)
        return found if found is not None and self._complete(found) else None

    def counts(self) -> TrialCounts:
        """How many trials are where."""
        with self._lock:
            trials = self._writer.table.trials
            found = Counter(trial.state.value.lower() for trial in trials.values())
            found["waiting"] += self.total - len(trials)
        return TrialCounts(total=self.total, **found)

    # ------------------------------------------------------------------------------ changes

    def choose(self, number: int, values: dict[str, Any], epochs: int) -> None:
        """Note a new trial, before anybody hears of it."""
        configuration, seed = divmod(number, self.spec.seeds)
        trial = Trial(
            number=number, configuration=configuration, seed=seed, values=values, epochs=epochs
        )
        with self._lock:
            self._writer.trial(trial)

    def update(self, number: int, **changes: Any) -> Trial:
        """Note what has changed about a trial."""
        with self._lock:
            trial = self._writer.table.trials[number].model_copy(update=changes)
            self._writer.trial(trial)
            return trial

    def start(self, number: int) -> None:
        """Note that a trial runs."""
        with self._lock:
            trial = self._writer.table.trials[number]
            self.update(
                number,
                state=TrialState.RUNNING,
                attempt=self.attempt,
                started_at=trial.started_at or time.time(),
                reason=None,
                evidence="",
            )

    def report(self, report: Report) -> None:
        """Note what a trial told; what was told before is known."""
        with self._lock:
            trial = self._writer.table.trials[report.number]
            if report.epoch <= trial.epoch:
                return
            self._writer.report(report)
            changes: dict[str, Any] = {"epoch": report.epoch, "metrics": report.metrics}
            score = report.metrics.get(self.spec.metric)
            if score is not None and (trial.score is None or self.spec.beats(score, trial.score)):
                changes |= {"score": score, "score_epoch": report.epoch}
            self.update(report.number, **changes)

    def conclude(self, number: int, lost: bool) -> Trial:
        """Note how a trial ended, from what it left in its folder.

        Args:
            number: The trial.
            lost: Its process is gone, and it will not be gone on with.
        """
        with self._lock:
            trial = self._writer.table.trials[number]
            if trial.state.ended:
                return trial
            result = _result_of(self.folder(number))
            return self.update(number, **self._ending(trial, result, lost))

    def cancel_rest(self) -> None:
        """The search is over: what has not ended will not run any more."""
        reason, evidence = self.cut_short or (Reason.CANCELLED, "the search has ended")
        with self._lock:
            for number, trial in list(self._writer.table.trials.items()):
                if trial.state.ended:
                    continue
                ended = {"ended_at": time.time()}
                if trial.reason is not None:  # it was to be retried, and has not run again
                    self.update(number, state=TrialState.FAILED, **ended)
                    continue
                cancelled = {"state": TrialState.CANCELLED, "reason": reason}
                self.update(number, **cancelled, evidence=evidence, **ended)

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of configurations that can't be among the best any more."""
        complete = [standing for standing in self.standings() if self._complete(standing)]
        for standing in complete[self.spec.keep_top :]:
            for trial in standing.trials:
                # One that failed may be retried: it goes on from where it was.
                if trial.checkpoint is None or trial.state is TrialState.FAILED:
                    continue
                for folder in [self.folder(trial.number), *self.folder(trial.number).earlier()]:
                    shutil.rmtree(folder.checkpoints, ignore_errors=True)
                gone = ("", "_sha256", "_epoch", "_step")
                self.update(trial.number, **{f"checkpoint{name}": None for name in gone})

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _catch_up(self) -> None:
        """Take in what trials of earlier attempts did after their driver wrote its last line."""
        for number, trial in self.table().trials.items():
            if trial.state.ended:
                continue
            folder = self.folder(number)
            for report in all_reports(folder):
                self.report(report)
            result = next((_result_of(earlier) for earlier in folder.earlier()), None)
            if result is not None and result.outcome == "succeeded":
                self.update(number, **self._ending(trial, result, lost=False))

    def _complete(self, standing: Standing) -> bool:
        ended = sum(trial.state.ended for trial in standing.trials)
        return ended == self.spec.seeds

    def _ending(self, trial: Trial, result: Result | None, lost: bool) -> dict[str, Any]:
        ended: dict[str, Any] = {"ended_at": time.time()}
        if result is not None:
            state = OUTCOMES[result.outcome]
            ended |= {"state": state, "reason": result.reason, "evidence": result.evidence}
            if state is TrialState.CANCELLED and self.cut_short is not None:
                ended["reason"], ended["evidence"] = self.cut_short
            if not state.ended:
                ended["ended_at"] = None
            return ended | self._best_checkpoint(trial.number)
        if lost:
            times = f"{trial.losses + 1} times, the last time " if trial.losses else ""
            evidence = f"its process died {times}in epoch {trial.epoch + 1}"
            return ended | {
                "state": TrialState.FAILED,
                "reason": Reason.WORKER_LOST,
                "evidence": evidence,
            }
        # The scheduler stopped it at a report, perhaps at its very last one.
        finished = trial.epoch >= trial.epochs
        state = TrialState.SUCCEEDED if finished else TrialState.PRUNED
        for path in self.folder(trial.number).checkpoints.glob("step-*"):
            path.unlink(missing_ok=True)  # it will not go on; the best weights stay
        reason = Reason.COMPLETED if finished else None
        return ended | {"state": state, "reason": reason} | self._best_checkpoint(trial.number)

    def _best_checkpoint(self, number: int) -> dict[str, Any]:
        """Where a trial's best weights lie, by the file that stands beside them."""
        for folder in [self.folder(number), *self.folder(number).earlier()]:
            path = folder.checkpoints / "best.pt"
            try:
                beside = json.loads(path.with_name("best.pt.json").read_bytes())
                facts = {f"checkpoint_{name}": beside[name] for name in ("sha256", "epoch", "step")}
            except (OSError, ValueError, KeyError):
                continue
            return {"checkpoint": folder.relative(path), **facts}
        return {}


def _result_of(folder: AttemptFolder) -> Result | None:
    """What a trial left; nothing where that can't be read."""
    try:
        return folder.read_result()
    except ValueError:  # damaged, or of another release
        logger.warning("%s has no readable result", folder.relative(folder.path), exc_info=True)
        return None


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """NaN and infinities as None, which JSON and readers can bear."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _to_go_on_with(trial: Trial, afresh: bool) -> Trial:
    """As it is before it runs (again); its scores so far stay.

    Why it failed stays too, until it runs again; what was cut off has no such reason.
    """
    changes: dict[str, Any] = {"state": TrialState.WAITING, "ended_at": None, "shipped": False}
    if trial.state is not TrialState.FAILED:
        changes |= {"reason": None, "evidence": ""}
    if afresh:
        changes["started_at"] = None
    return trial.model_copy(update=changes)
