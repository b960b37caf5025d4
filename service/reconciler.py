"""The loop that looks at every job, asks `service.reconcile` what to do, and does it.

Any order of crashes is safe: an attempt's row is committed before Ray is called, every change is a
compare-and-set on (attempt, version), and every call to the outside can be repeated.
"""

import logging
import threading
import time
from typing import Any

from pydantic import ValidationError

from service import reconcile as decide
from service.cluster import RayCluster
from service.demand import need_of
from service.errors import (
    ClusterUnavailableError,
    JobNotFoundError,
    StaleJobError,
    TrackingUnavailableError,
)
from service.placement import Placement
from service.queue.job import Job, Kind, State
from service.queue.store import NewEvent, Store
from service.runs import MlflowRuns
from service.settings import Settings
from service.version import package_version
from workers.attempt import (
    AnyAttempt,
    Attempt,
    AttemptFolder,
    Reason,
    Result,
    SearchAttempt,
)
from workers.trials import read_trials

logger = logging.getLogger(__name__)

SIGNAL_AGAIN_S = 5.0
CLOSE_AGAIN_S = 10.0
EVIDENCE_LENGTH = 2000


class ReconcilerLoop:
    """A thread that ticks every `settings.tick_s` seconds, or at once when woken."""

    def __init__(
        self, store: Store, cluster: RayCluster, runs: MlflowRuns, settings: Settings
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._runs = runs
        self._settings = settings
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._signalled: dict[str, float] = {}
        self._close_after = 0.0

    def start(self) -> None:
        """Begin to tick."""
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current tick and end; jobs go on without us."""
        self._ended.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=30)

    def wake(self) -> None:
        """Tick now: something was submitted or cancelled."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.tick()
            except Exception:
                logger.exception("a tick failed; the next one looks again")
            self._wake.wait(self._settings.tick_s)

    def tick(self) -> None:
        """Look at every job that has not ended, once."""
        jobs = self._store.active()
        running = [job for job in jobs if job.state is State.RUNNING]
        waiting = [job for job in jobs if job.state is not State.RUNNING]
        nodes = {job.id: self._guarded(self._tick_running, job) for job in running}
        if waiting:
            self._tick_all_waiting(waiting, running, nodes)
        self._close_runs()

    # ------------------------------------------------------------------------ running jobs

    def _tick_running(self, job: Job) -> str | None:
        """Act on one running job; returns the node that it runs on, where Ray knows."""
        assert job.current is not None
        seen = self._look(job)
        action = decide.reconcile(job, job.current, seen, self._store.now())
        self._apply(job, action, seen)
        return seen.ray.node_id

    def _look(self, job: Job) -> decide.Seen:
        assert job.current is not None
        folder = self._folder(job)
        ray = self._cluster.job(job.current.submission_id)
        # Read after Ray was asked: a worker that ended in between has left its result by now.
        return decide.Seen(
            ray=ray,
            result=_read_result(folder),
            result_at=folder.result_written_at(),
            heartbeat=folder.heartbeat(),
            has_checkpoint=not ray.status.alive and self._has_checkpoint(job),
        )

    def _has_checkpoint(self, job: Job) -> bool:
        """Whether something is gained by the attempt; of a search also a trial that ended in it.

        Looked for only where the attempt may be lost: a search has many folders.
        """
        folder = self._folder(job)
        if job.kind is Kind.TRAIN:
            return any(folder.checkpoints.glob("step-*.json"))
        of_trials = folder.path.parent.glob(f"trials/*/{job.attempt}/checkpoints/step-*.json")
        return any(of_trials) or any(
            trial.attempt == job.attempt and trial.state.ended
            for trial in read_trials(folder).trials.values()
        )

    def _apply(self, job: Job, action: decide.Action, seen: decide.Seen) -> None:
        match action:
            case decide.Nothing():
                pass
            case decide.Submit():
                self._submit(job)
            case decide.RequestStop():
                self._request_stop(job, action)
            case decide.StopRay():
                self._signal(job, action.why)
            case decide.NoteGone():
                at = self._store.now() if action.gone else None
                event = NewEvent("suspect", f"Ray says {seen.ray.status}; the worker is silent")
                self._store.update(
                    job, event=event if action.gone else None, attempt={"gone_since": at}
                )
            case decide.Finish():
                self._finish(job, action, seen.result)
            case decide.Requeue():
                self._requeue(job, action)
            case _:
                raise AssertionError(f"{action} is not for a running job")

    def _submit(self, job: Job) -> None:
        assert job.current is not None
        folder = self._folder(job)
        folder.write_attempt(self._orders(job))
        entrypoint = need_of(job.spec).entrypoint
        self._cluster.submit(job.current.submission_id, job.id, job.attempt, entrypoint)
        event = NewEvent("dispatched", f"Ray has {job.current.submission_id}")
        self._store.update(job, event=event, attempt={"submitted_at": self._store.now()})

    def _orders(self, job: Job) -> AnyAttempt:
        """What the attempt's first process is to do."""
        assert job.run_id is not None
        common: dict[str, Any] = {
            "package_version": package_version(),
            "job": job.id,
            "attempt": job.attempt,
            "spec": job.spec,
            "tracking_uri": self._settings.mlflow_uri,
            "run_id": job.run_id,
            "init_checkpoint": self._init_checkpoint(job),
        }
        if job.kind is Kind.TRAIN:
            return Attempt(**common)
        assert job.experiment_id is not None
        return SearchAttempt(
            **common, experiment_id=job.experiment_id, retry_through=job.retry_through
        )

    def _request_stop(self, job: Job, action: decide.RequestStop) -> None:
        self._folder(job).request_stop(action.kind)
        event = NewEvent("stop-requested", f"the worker is asked to leave: {action.reason.value}")
        changes = {
            "stop_kind": action.kind,
            "stop_reason": action.reason,
            "stop_requested_at": self._store.now(),
        }
        self._store.update(job, event=event, attempt=changes)

    def _signal(self, job: Job, why: str) -> None:
        assert job.current is not None
        submission = job.current.submission_id
        first = submission not in self._signalled
        if not first and time.monotonic() - self._signalled[submission] < SIGNAL_AGAIN_S:
            return
        self._cluster.stop(submission)
        self._signalled[submission] = time.monotonic()
        if first:
            self._store.update(job, event=NewEvent("signalled", f"SIGTERM, then SIGKILL: {why}"))

    def _finish(self, job: Job, action: decide.Finish, result: Result | None) -> None:
        if job.state is State.RUNNING and result is None:
            # Should anything be left of the attempt, or come up late, it leaves by itself.
            self._folder(job).request_stop("cancel")
        now = self._store.now()
        evidence = action.evidence[:EVIDENCE_LENGTH]
        self._store.update(
            job,
            event=NewEvent(action.state.value.lower(), evidence or action.reason.value),
            attempt=self._attempt_ended(job, now),
            state=action.state,
            reason=action.reason,
            evidence=evidence,
            waiting_reason="",
            finished_at=now if action.state.terminal else None,
            result=result.model_dump(mode="json") if result else job.result,
        )
        self._wake.set()  # its place is free: look at the queue again at once

    def _requeue(self, job: Job, action: decide.Requeue) -> None:
        now = self._store.now()
        self._store.update(
            job,
            event=NewEvent("requeued", f"{action.reason.value}: {action.evidence}"[:500]),
            attempt=self._attempt_ended(job, now),
            state=State.QUEUED,
            reason=action.reason,
            evidence=action.evidence[:EVIDENCE_LENGTH],
            errors=action.errors,
            losses=action.losses,
            not_before=now + action.delay_s if action.delay_s else None,
        )
        self._wake.set()

    def _attempt_ended(self, job: Job, now: float) -> dict[str, float] | None:
        """The change to the attempt's row, where an attempt ends with the change of the job."""
        if job.state is not State.RUNNING or job.current is None:
            return None
        self._signalled.pop(job.current.submission_id, None)
        return {"ended_at": now}

    # ------------------------------------------------------------------------ waiting jobs

    def _tick_all_waiting(
        self, waiting: list[Job], running: list[Job], nodes: dict[str, str | None]
    ) -> None:
        try:
            placement = Placement(self._cluster.nodes())
        except ClusterUnavailableError as error:
            for job in waiting:
                self._guarded(self._tick_waiting, job, str(error))
            return
        for job in running:
            placement.occupy(need_of(job.spec), nodes[job.id])
        for job in waiting:
            self._guarded(self._tick_waiting_placed, job, placement)

    def _tick_waiting_placed(self, job: Job, placement: Placement) -> None:
        obstacle = ""
        if decide.reconcile_waiting(job, "", self._store.now()) == decide.Dispatch():
            obstacle = self._wait_for_init(job) or placement.place(need_of(job.spec))
        self._tick_waiting(job, obstacle)

    def _tick_waiting(self, job: Job, obstacle: str) -> None:
        action = decide.reconcile_waiting(job, obstacle, self._store.now())
        match action:
            case decide.Nothing():
                pass
            case decide.Wait():
                self._wait(job, action.reason)
            case decide.Dispatch():
                self._dispatch(job)
            case decide.Finish():
                self._finish(job, action, None)
            case decide.Requeue():
                self._requeue(job, action)
            case _:
                raise AssertionError(f"{action} is not for a waiting job")

    def _wait(self, job: Job, reason: str) -> None:
        if job.waiting_reason != reason:
            self._store.update(job, waiting_reason=reason)

    def _dispatch(self, job: Job) -> None:
        if job.run_id is None:
            try:
                experiment_id, run_id = self._runs.ensure(job)
            except TrackingUnavailableError as error:
                self._wait(job, str(error))
                return
            job = self._store.update(job, experiment_id=experiment_id, run_id=run_id)
        event = NewEvent("started", f"attempt {job.attempt + 1}")
        self._submit(self._store.start_attempt(job, event))

    # ------------------------------------------------------------------------- init_from

    def _wait_for_init(self, job: Job) -> str:
        """Why the job's initial weights are not there yet, if so."""
        source = job.training.init_from
        if source is None or source.job is None:
            return ""
        try:
            origin = self._store.get(source.job)
        except JobNotFoundError:
            return ""  # the worker finds no checkpoint and says so
        if origin.state.terminal:
            return ""
        return f"init_from: job {origin.id} is {origin.state}, it has not ended yet"

    def _init_checkpoint(self, job: Job) -> str | None:
        source = job.training.init_from
        if source is None:
            return None
        if source.path is not None:
            return source.path
        assert source.job is not None
        missing = f"jobs/{source.job}/no-{source.checkpoint}-checkpoint"
        try:
            origin = self._store.get(source.job)
        except JobNotFoundError:
            return missing
        checkpoints = (origin.result or {}).get("checkpoints", {})
        return str(checkpoints.get(source.checkpoint, {}).get("path", missing))

    # ------------------------------------------------------------------------ MLflow's end

    def _close_runs(self) -> None:
        """Give ended jobs' runs their final status; MLflow may be away for as long as it likes."""
        if time.monotonic() < self._close_after:
            return
        for job in self._store.unclosed():
            try:
                self._runs.close(job)
                self._store.update(job, run_closed=True)
            except TrackingUnavailableError as error:
                logger.warning("runs are closed later: %s", error)
                self._close_after = time.monotonic() + CLOSE_AGAIN_S
                return
            except StaleJobError:
                continue
            except Exception:
                logger.exception("job %s: its run is not closed", job.id)

    # ------------------------------------------------------------------------------ helpers

    def _guarded(self, step, job: Job, *arguments):  # type: ignore[no-untyped-def]
        """One job's trouble is its own: the others are looked at all the same."""
        try:
            return step(job, *arguments)
        except StaleJobError:
            return None  # changed meanwhile, by a user or another replica: the next look sees it
        except (ClusterUnavailableError, TrackingUnavailableError) as error:
            logger.warning("job %s: %s", job.id, error)
        except Exception:
            logger.exception("job %s", job.id)
        return None

    def _folder(self, job: Job) -> AttemptFolder:
        return AttemptFolder(self._settings.storage_root, job.id, job.attempt)


def _read_result(folder: AttemptFolder) -> Result | None:
    try:
        return folder.read_result()
    except ValidationError as error:
        first = error.errors()[0]
        evidence = f"result.json is not one of ours: {first['loc']} {first['msg']}"
        return Result(outcome="failed", reason=Reason.VERSION_MISMATCH, evidence=evidence)
