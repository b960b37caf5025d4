"""Looks at a running job: its attempt's folder, its processes, and Ray's word on it."""

import logging
import time

from pydantic import ValidationError

from service import reconcile as decide
from service.cluster import RayJob, RayStatus
from service.queue.job import Job, Kind
from service.reconciler.parts import Parts, Sight
from workers import liveness
from workers.attempt import (
    AttemptFolder,
    Progress,
    Reason,
    Result,
    VersionMismatchError,
)
from workers.trials import read_trials

logger = logging.getLogger(__name__)

SILENT_S = 3.0
"""A worker tells of itself about once a second. Its processes are looked for when it does not."""
MAINS = ("worker", "driver")
"""Roles of the process that Ray starts for an attempt."""


class Observer:
    """Makes `Seen` of a job."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._since: float | None = None
        self._now = 0.0

    def begin(self, now: float) -> None:
        """A new look at all jobs."""
        self._now = now
        if self._since is None:
            self._since = now

    def look(self, job: Job, sight: Sight) -> decide.Seen:
        """See what can be seen of a running job."""
        assert job.current is not None
        assert self._since is not None
        folder = self._parts.folder(job)
        ray = RayJob(RayStatus.UNREACHABLE, sight.problem)
        if sight.seen is not None:
            ray = sight.seen.job(job.current.submission_id)
        result = _read_result(folder)
        suspicious = not ray.status.alive or result is not None or self._silent(folder)
        asked_to_leave = job.current.stop_requested_at is not None
        node = ray.node_id or job.current.node_id
        return decide.Seen(
            ray=ray,
            session=sight.seen.session if sight.seen else None,
            node_dead=sight.seen is not None and node in sight.seen.dead_nodes,
            processes=_processes(folder) if suspicious or asked_to_leave else decide.Processes(),
            result=result,
            result_at=folder.result_written_at(),
            progress=_read_progress(folder),
            has_checkpoint=suspicious and self._has_checkpoint(job),
            watched_s=self._now - self._since,
        )

    def _silent(self, folder: AttemptFolder) -> bool:
        heartbeat = folder.heartbeat()
        return heartbeat is not None and time.time() - heartbeat > SILENT_S

    def _has_checkpoint(self, job: Job) -> bool:
        """Whether something is gained by the attempt; of a search also a trial that ended in it.

        Looked for only where the attempt may be lost: a search has many folders.
        """
        folder = self._parts.folder(job)
        if job.kind is Kind.TRAIN:
            return any(folder.checkpoints.glob("*.pt.json"))
        of_trials = folder.path.parent.glob(f"trials/*/{job.attempt}/checkpoints/*.pt.json")
        return any(of_trials) or any(
            trial.attempt == job.attempt and trial.state.ended
            for trial in read_trials(folder).trials.values()
        )


def _processes(folder: AttemptFolder) -> decide.Processes:
    """What can be told of them; nothing where a record can't be read: that proves no death."""
    try:
        records = folder.processes()
    except ValueError:
        logger.warning("job %s: a process's record can't be read", folder.owner, exc_info=True)
        return decide.Processes()
    living = liveness.living(records)
    elsewhere = liveness.elsewhere(records)
    mains = sum(record.role in MAINS for record in elsewhere)
    return decide.Processes(
        living=len(living),
        gone=len(records) - len(elsewhere) - len(living),
        mains_elsewhere=mains,
        helpers_elsewhere=len(elsewhere) - mains,
    )


def _read_result(folder: AttemptFolder) -> Result | None:
    try:
        return folder.read_result()
    except VersionMismatchError as error:
        evidence = str(error)
    except ValidationError as error:
        first = error.errors()[0]
        evidence = f"result.json is not one of ours: {first['loc']} {first['msg']}"
    return Result(outcome="failed", reason=Reason.VERSION_MISMATCH, evidence=evidence)


def _read_progress(folder: AttemptFolder) -> Progress | None:
    """A heartbeat decides nothing, so one that can't be read does not either."""
    try:
        return folder.read_progress()
    except (OSError, ValueError):
        return None
