"""The course of a search, in the driver of its Ray job: trials by Tune, the book, MLflow, reports.

The driver computes nothing itself. When it dies, or its cluster does, the queue's next attempt goes
on from the book: what has ended stays, what ran goes on from its checkpoints, the scheduler knows
its rungs and the algorithm what it was told.
"""

import logging
import os
import time
from pathlib import Path

from workers import uploads
from workers.attempt import AttemptFolder, CheckpointRef, Kept, Reason, Result, SearchAttempt
from workers.child_runs import ChildRuns
from workers.cluster import ClusterLostError, bundle, connected
from workers.search.algorithms import Algorithm
from workers.search.book import SearchBook
from workers.search.ending import present
from workers.search.pulse import Pulse
from workers.search_specs import ALGORITHMS, SCHEDULERS, SearchSpec
from workers.specs import ResourcesConfig
from workers.spool import Spool
from workers.stop import StopSignal
from workers.tracking import Tracker, note_tracking
from workers.trials import TrialState

logger = logging.getLogger(__name__)

PATIENCE_DONE_S = 120.0
"""How long an ended search waits for MLflow to take what is left."""
PATIENCE_STOPPED_S = 5.0
"""How long a cancelled or failed one does."""

STATUS = {"succeeded": "FINISHED", "cancelled": "KILLED", "failed": "FAILED"}
"""MLflow's word for an outcome; a search that will go on keeps its run open."""

TUNE_ENVIRONMENT = {
    # All that these would write is in the book and in the trials' folders.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # A trial that fails ends without a metric, and that must not end the search.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Signals are ours: the trials leave checkpoints first.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def search(folder: AttemptFolder, attempt: SearchAttempt, stop: StopSignal) -> Result:
    """Run all trials that are left, then report on the search as a whole."""
    spec = attempt.spec
    book = SearchBook(spec, folder, attempt.job, attempt.attempt, attempt.retry_through)
    tracker = Tracker(
        attempt.tracking_uri,
        attempt.run_id,
        Spool(folder.metrics, [earlier.metrics for earlier in folder.earlier()]),
        apart=False,  # the trials' runs are sent from the book, and nothing is trained here
    )
    tracker.submit("start of the run", uploads.start(attempt))
    tracker.start()
    children = ChildRuns(attempt, book)
    pulse = Pulse(folder, book, tracker, children)
    os.environ.update(TUNE_ENVIRONMENT)
    status, patience = "", PATIENCE_STOPPED_S  # an open run is the later attempt's to end
    ended_by: BaseException | None = None
    try:
        with pulse, connected(stop):
            course = SearchCourse(folder, attempt, book, stop)
            course.run()
            result = course.verdict()
            if result.outcome in ("succeeded", "failed", "cancelled"):
                pulse.phase = "finishing"
                present(folder, attempt, book, tracker, stop)
            status = STATUS.get(result.outcome, "")
            if result.outcome == "succeeded":
                patience = PATIENCE_DONE_S
    except ClusterLostError as error:
        ended_by = error
        raise
    except BaseException as error:
        ended_by = error
        status = "FAILED"
        book.cut_short = (Reason.ERROR, f"the search itself failed: {type(error).__name__}")
        book.cancel_rest()
        raise
    finally:
        tracking = pulse.finish("" if folder.superseded() else status, patience, stop)
        book.close()
        if ended_by is not None:
            note_tracking(ended_by, tracking)
    return result.model_copy(update={"tracking": tracking})


class SearchCourse:
    """One attempt's part of a search."""

    def __init__(
        self, folder: AttemptFolder, attempt: SearchAttempt, book: SearchBook, stop: StopSignal
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._book = book
        self._stop = stop
        self._asked: set[int] = set()
        """Trials that were asked to leave."""
        # A retry has the whole budget again.
        since = [f for f in folder.earlier() if int(f.path.name) > attempt.retry_through]
        spent = sum(_active_s(earlier) for earlier in since)
        limit = attempt.spec.budget.max_runtime_s
        self._over_at = None if limit is None else time.monotonic() + max(0.0, limit - spent)

    @property
    def spec(self) -> SearchSpec:
        """The search."""
        return self._attempt.spec

    def run(self) -> None:
        """Run trials until none is left, or the search is to end."""
        from ray import tune
        from ray.tune import (
            FailureConfig,
            PlacementGroupFactory,
            RunConfig,
            TuneConfig,
            Tuner,
        )

        from workers.search.schedulers import recall
        from workers.search.source import TrialSource
        from workers.search.trainable import run_trial
        from workers.search.watcher import Watcher

        spec, table = self.spec, self._book.table()
        algorithm: Algorithm = ALGORITHMS.implementation(spec.algorithm.type)(spec)
        source = TrialSource(self._book, algorithm, self._attempt.job, self._closed)
        if not source.remaining:
            return
        _, longest = spec.epochs_range
        scheduler = SCHEDULERS.implementation(spec.scheduler.type)(spec.scheduler, spec, longest)
        recall(scheduler, table, spec.metric)
        tuner = Tuner(
            tune.with_resources(run_trial, PlacementGroupFactory([_bundle(spec.resources)])),
            tune_config=TuneConfig(
                search_alg=source,
                scheduler=scheduler,
                num_samples=source.remaining,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"{trial.config['number']:05}",
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(self._folder.path),
                failure_config=FailureConfig(max_failures=spec.budget.max_losses),
                callbacks=[Watcher(self._book, self._closed)],
                verbose=0,
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses files that we forbid it
        tuner.fit()

    def verdict(self) -> Result:
        """What became of the search."""
        cause = self._stop.cause()
        if cause == "pause":
            return Result(outcome="paused", reason=Reason.PAUSED, evidence=self._words())
        if cause not in (None, "cancel"):
            return Result(outcome="interrupted", reason=Reason.INTERRUPTED, evidence=self._words())
        self._book.cancel_rest()
        words = self._words()
        if cause == "cancel":
            return Result(outcome="cancelled", reason=Reason.CANCELLED, evidence=words)
        counts, failures = self._book.counts(), self._failures()
        best = next(iter(self._book.standings()), None)
        unscored = best is None or best.mean is None
        cut = self._book.cut_short
        if unscored and cut is not None and cut[0] is Reason.BUDGET:
            evidence = f"{cut[1]}, and no trial has measured anything; {words}"
            return Result(outcome="failed", reason=Reason.BUDGET, evidence=evidence)
        if best is None or best.mean is None or failures > self.spec.budget.max_failures:
            return Result(
                outcome="failed",
                reason=Reason.TRIALS_FAILED,
                evidence=f"{failures} trials failed, {self.spec.budget.max_failures} are "
                f"tolerated; {words}{self._last_failure()}",
            )
        trial = best.best(self.spec.mode)
        kept: dict[Kept, CheckpointRef] = {}
        if trial is not None and trial.checkpoint and trial.checkpoint_sha256:
            kept["best"] = CheckpointRef(
                path=trial.checkpoint,
                sha256=trial.checkpoint_sha256,
                epoch=trial.checkpoint_epoch or trial.epoch,
                step=trial.checkpoint_step or 0,
            )
        deviation = "" if best.deviation is None else f" ± {best.deviation:.4f}"
        short = f"; {cut[1]}" if cut else ""
        return Result(
            outcome="succeeded",
            reason=Reason.COMPLETED,
            evidence=f"best {self.spec.metric} {best.mean:.4f}{deviation} by configuration "
            f"{best.configuration}; {words}{short}",
            metrics={"score": best.mean, "trials": counts.ended, "trials_failed": counts.failed},
            checkpoints=kept,
        )

    def _closed(self) -> bool:
        """Whether no trial may start any more; those that run are asked to leave where need be."""
        if (cause := self._stop.cause()) is not None:
            if cause == "signal" and not self._folder.leave_requested():
                self._folder.request_leave()  # the trials know no signals
            return True
        if self._book.cut_short is None and (short := self._cut_short()) is not None:
            self._book.cut_short = short
            logger.warning("no more trials: %s", short[1])
        if self._book.cut_short is not None:
            self._stop_running()
        return self._book.cut_short is not None

    def _stop_running(self) -> None:
        """Ask each trial that runs to leave, once; some start only after the cut."""
        for number in self._book.running() - self._asked:
            self._book.folder(number).request_stop("cancel")
            self._asked.add(number)

    def _cut_short(self) -> tuple[Reason, str] | None:
        budget = self.spec.budget
        if self._over_at is not None and time.monotonic() > self._over_at:
            return Reason.BUDGET, f"budget.max_runtime_s = {budget.max_runtime_s} is over"
        if self._failures() > budget.max_failures:
            return (
                Reason.TRIALS_FAILED,
                f"more than budget.max_failures = {budget.max_failures} trials failed",
            )
        return None

    def _words(self) -> str:
        """How many trials ended, and how many of them not well."""
        counts = self._book.counts()
        badly = [("failed", counts.failed), ("cancelled", counts.cancelled)]
        told = "".join(f", {number} {name}" for name, number in badly if number)
        by_themselves = counts.ended - counts.cancelled
        return f"{by_themselves} of {counts.total} trials ended{told}"

    def _failures(self) -> int:
        return self._book.counts().failed

    def _last_failure(self) -> str:
        failed = [
            trial
            for trial in self._book.table().trials.values()
            if trial.state is TrialState.FAILED
        ]
        last = max(failed, key=lambda trial: trial.ended_at or 0.0, default=None)
        return "" if last is None else f"; trial {last.number}: {last.evidence}"


def _bundle(need: ResourcesConfig) -> dict[str, float]:
    """What a trial reserves: a worker's share, or a slot for the driver of several workers."""
    return bundle(need) if need.workers == 1 else {"CPU": 0, "driver_slot": 1}


def _active_s(folder: AttemptFolder) -> float:
    """Seconds from an attempt's beginning to its last heartbeat."""
    last = folder.heartbeat()
    began = _modified(folder.path / "attempt.json")
    return 0.0 if last is None or began is None else max(0.0, last - began)


def _modified(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None
