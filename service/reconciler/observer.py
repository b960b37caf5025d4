"""Looks at a running job: its attempt's folder, its processes, and Ray's word on it."""

import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from capsmodel.sidecar import LAST, BadCheckpointError, read_sidecar
from service import reconcile as decide
from service.cluster import RayJob, RayStatus
from service.queue.job import Attempt, Job, Kind
from service.reconciler.parts import Parts, Sight, records_of
from workers import liveness
from workers.attempt import (
    AttemptFolder,
    Progress,
    Reason,
    Result,
    VersionMismatchError,
)
from workers.trials import read_trials

SILENT_S = 3.0
"""A worker tells of itself about once a second. Its processes are looked for when it does not."""
MAINS = ("worker", "driver")
"""Roles of the process that Ray starts for an attempt."""
Notes = tuple[float | None, float | None, float | None]
"""Times that the queue has noted of an attempt."""


class Observer:
    """Makes `Seen` of a job."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._now = 0.0
        self._results: dict[str, float] = {}
        self._notes: dict[str, tuple[Notes, float]] = {}

    def begin(self, now: float, running: Iterable[Job]) -> None:
        """A new look at all jobs."""
        self._now = now
        current = {job.current.submission_id for job in running if job.current is not None}
        self._notes = {id: found for id, found in self._notes.items() if id in current}
        self._results = {
            id: min(since, now) for id, since in self._results.items() if id in current
        }

    def _first_seen(self, submission: str) -> float:
        """Since when a result is known: files have the clock of another machine."""
        return self._results.setdefault(submission, self._now)

    def _watched_s(self, attempt: Attempt) -> float:
        """For how long its notes have been as they are, by a clock that nobody sets."""
        notes = (attempt.gone_since, attempt.session_lost_at, attempt.killed_at)
        known, since = self._notes.get(attempt.submission_id, (None, 0.0))
        if known != notes:
            since = time.monotonic()
            self._notes[attempt.submission_id] = notes, since
        return time.monotonic() - since

    def look(self, job: Job, sight: Sight) -> decide.Seen:
        """See what can be seen of a running job."""
        assert job.current is not None
        folder = self._parts.folder(job)
        ray = RayJob(RayStatus.UNREACHABLE, sight.problem)
        if sight.seen is not None:
            ray = sight.seen.job(job.current.submission_id)
        result = _read_result(folder)
        node = ray.node_id or job.current.node_id
        node_dead = sight.seen is not None and node in sight.seen.dead_nodes
        suspicious = not ray.status.alive or node_dead or result is not None or self._silent(folder)
        asked_to_leave = job.current.stop_requested_at is not None
        progress = _read_progress(folder)
        return decide.Seen(
            ray=ray,
            session=sight.seen.session if sight.seen else None,
            node_dead=node_dead,
            processes=_processes(folder) if suspicious or asked_to_leave else decide.Processes(),
            result=result,
            result_at=None if result is None else self._first_seen(job.current.submission_id),
            progress=progress,
            has_checkpoint=suspicious and self._has_checkpoint(job, progress),
            watched_s=self._watched_s(job.current),
        )

    def _silent(self, folder: AttemptFolder) -> bool:
        heartbeat = folder.heartbeat()
        return heartbeat is not None and time.time() - heartbeat > SILENT_S

    def _has_checkpoint(self, job: Job, progress: Progress | None) -> bool:
        """Whether something is gained by the attempt; of a search also a trial that ended in it.

        Looked for only where the attempt may be lost: a search has many folders.
        """
        folder = self._parts.folder(job)
        if job.kind is Kind.TRAIN:
            return _gained(folder.checkpoints, _begun_at(job, progress))
        trials = folder.path.parent.glob(f"trials/*/{job.attempt}/checkpoints")
        of_trials = (_gained(each, _newest_step_before(each.parent)) for each in trials)
        return any(of_trials) or any(
            trial.attempt == job.attempt and trial.state.ended
            for trial in read_trials(folder).trials.values()
        )


def _begun_at(job: Job, progress: Progress | None) -> int:
    """The step from which the attempt goes on. One that ends at once is noted with it nowhere."""
    assert job.current is not None
    if job.current.resumed_step is not None:
        return job.current.resumed_step
    return progress.resumed.step if progress and progress.resumed else 0


def _gained(checkpoints: Path, begun_at: int) -> bool:
    """Whether there is one beyond the step at which the attempt began.

    The best one does not count, since it is taken over from the attempt before. An attempt that
    begins where all is trained gains nothing more: dying again and again, it is given up.
    """
    return _newest_step(checkpoints) > begun_at


def _newest_step(checkpoints: Path) -> int:
    names = (path.name for path in checkpoints.glob("step-*.pt.json"))
    steps = (name.removeprefix("step-").removesuffix(".pt.json") for name in names)
    saved = max((int(step) for step in steps if step.isdecimal()), default=0)
    try:
        return max(saved, read_sidecar(checkpoints / LAST).step)
    except BadCheckpointError:
        return saved


def _newest_step_before(attempt: Path) -> int:
    """Of a trial: the newest step that its earlier attempts left."""
    earlier = [
        path
        for path in attempt.parent.iterdir()
        if path.name.isdecimal() and int(path.name) < int(attempt.name)
    ]
    return max((_newest_step(path / "checkpoints") for path in earlier), default=0)


def _processes(folder: AttemptFolder) -> decide.Processes:
    """What can be told of them."""
    records = records_of(folder)
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
        return Result(outcome="failed", reason=Reason.VERSION_MISMATCH, evidence=str(error))
    except ValidationError as error:
        first = error.errors()[0]
        evidence = f"result.json is not one of ours: {first['loc']} {first['msg']}"
        return Result(outcome="failed", reason=Reason.ERROR, evidence=evidence)


def _read_progress(folder: AttemptFolder) -> Progress | None:
    """A heartbeat decides nothing, so one that can't be read does not either."""
    try:
        return folder.read_progress()
    except (OSError, ValueError):
        return None
