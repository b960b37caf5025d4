"""What is to be done about a job: one pure function over all that can be seen of it.

Level-triggered: it looks at the state of things, never at what happened in between, so a crash of
the control plane at any point is mended by the next look. Cancel, pause, deadline, retry and
recovery are the same path. No I/O here; `service.reconciler` looks and applies.
"""

from dataclasses import dataclass

from service.cluster import RayJob, RayStatus
from service.queue.job import Attempt, Desired, Job, State
from workers.attempt import Reason, Result, StopKind

STOP_GRACE_S = 10.0
"""From the stop flag to SIGTERM: time to leave a checkpoint."""
EXIT_GRACE_S = 10.0
"""From the worker's result to the end of its process."""
CONFIRM_S = 3.0
"""Ray's word that an attempt is over, without a result, must hold for so long: FAILED can be
false while a head fails over."""
FORGOTTEN_S = 90.0
"""A head that has forgotten the attempt was restarted; its drivers were seen to live 64 s. So
long must the worker have been silent; while its heart beats, it is not lost."""
MAX_LOSSES = 3
"""Lost attempts in a row, none of which left a checkpoint, make a poison job."""
BACKOFF_S = 10.0
MAX_BACKOFF_S = 600.0

FINAL = (Reason.DIVERGED, Reason.DATA_MISSING, Reason.BAD_CHECKPOINT, Reason.VERSION_MISMATCH)
"""Errors that the same specification would meet again: never retried."""


@dataclass(frozen=True)
class Seen:
    """What can be seen of a running job's attempt, from its folder and from Ray."""

    ray: RayJob
    result: Result | None = None
    result_at: float | None = None
    heartbeat: float | None = None
    has_checkpoint: bool = False
    """Whether this attempt, or a trial in it, has left a checkpoint of its own."""


@dataclass(frozen=True)
class Nothing:
    """All is as it should be."""


@dataclass(frozen=True)
class Wait:
    """A queued job stays queued, for this reason; empty while it is about to start."""

    reason: str


@dataclass(frozen=True)
class Dispatch:
    """Start a new attempt."""


@dataclass(frozen=True)
class Submit:
    """The attempt is committed, but it is not known whether Ray has it: submit (again)."""


@dataclass(frozen=True)
class RequestStop:
    """Raise the stop flag in the attempt's folder."""

    kind: StopKind
    reason: Reason


@dataclass(frozen=True)
class StopRay:
    """The grace is over: SIGTERM, then SIGKILL."""

    why: str


@dataclass(frozen=True)
class NoteGone:
    """Ray says that the attempt is over (or, if not `gone`, no longer says so): remember when."""

    gone: bool


@dataclass(frozen=True)
class Finish:
    """The job ends, or is paused."""

    state: State
    reason: Reason
    evidence: str = ""


@dataclass(frozen=True)
class Requeue:
    """Another attempt is due, not before `delay_s` from now."""

    reason: Reason
    evidence: str
    delay_s: float
    errors: int
    losses: int


Action = Nothing | Wait | Dispatch | Submit | RequestStop | StopRay | NoteGone | Finish | Requeue


def reconcile_waiting(job: Job, obstacle: str, now: float) -> Action:
    """Decide over a QUEUED or PAUSED job; `obstacle` says why it can't start, if it can't."""
    if job.desired is Desired.CANCEL:
        return Finish(State.CANCELLED, Reason.CANCELLED, "cancelled while it was not running")
    if job.desired is Desired.PAUSE:
        if job.state is State.PAUSED:
            return Nothing()
        return Finish(State.PAUSED, Reason.PAUSED, "paused before it ran")
    if job.state is State.PAUSED:
        return Requeue(Reason.PAUSED, "resumed", 0.0, job.errors, job.losses)
    if job.not_before is not None and now < job.not_before:
        return Wait("backs off before the next attempt; not_before says until when")
    return Wait(obstacle) if obstacle else Dispatch()


def reconcile(job: Job, attempt: Attempt, seen: Seen, now: float) -> Action:
    """Decide over a RUNNING job."""
    ray = seen.ray.status
    if seen.result is not None:
        return _after_result(job, attempt, seen, seen.result, now)
    if attempt.submitted_at is None:
        return _not_submitted(job, ray)
    if ray.over or ray is RayStatus.MISSING:
        if attempt.gone_since is None:
            return NoteGone(gone=True)
        last_sign = max(seen.heartbeat or 0.0, attempt.submitted_at)
        if ray is RayStatus.MISSING and now - last_sign < FORGOTTEN_S:
            return _while_running(job, attempt, ray, now)
        confirmed = now - attempt.gone_since >= CONFIRM_S
        if not confirmed:
            return Nothing()
        said = _first_words(seen.ray.message) or f"Ray says {ray}, and the worker left no result"
        return _after_loss(job, attempt, seen, Reason.WORKER_LOST, said)
    if attempt.gone_since is not None and ray.alive:
        return NoteGone(gone=False)
    return _while_running(job, attempt, ray, now)


def _not_submitted(job: Job, ray: RayStatus) -> Action:
    if ray is RayStatus.UNREACHABLE:
        return Nothing()
    if job.desired is Desired.CANCEL and ray is RayStatus.MISSING:
        return Finish(State.CANCELLED, Reason.CANCELLED, "cancelled before Ray was called")
    return Submit()


def _while_running(job: Job, attempt: Attempt, ray: RayStatus, now: float) -> Action:
    if attempt.stop_requested_at is None:
        if job.desired is Desired.CANCEL:
            return RequestStop("cancel", Reason.CANCELLED)
        if job.desired is Desired.PAUSE:
            return RequestStop("pause", Reason.PAUSED)
        limit = job.max_runtime_s
        if limit is not None and now - (attempt.submitted_at or now) > limit:
            return RequestStop("cancel", Reason.DEADLINE)
        return Nothing()
    if attempt.stop_reason is Reason.PAUSED and job.desired is Desired.CANCEL:
        return RequestStop("cancel", Reason.CANCELLED)
    if ray.alive and now - attempt.stop_requested_at > STOP_GRACE_S:
        return StopRay(f"no answer to the stop flag for {STOP_GRACE_S:.0f} s")
    return Nothing()


def _after_result(job: Job, attempt: Attempt, seen: Seen, result: Result, now: float) -> Action:
    if seen.ray.status.alive:
        if now - (seen.result_at or now) > EXIT_GRACE_S:
            return StopRay("the result is written, but the process stays")
        return Nothing()
    if result.outcome == "succeeded":
        return Finish(State.SUCCEEDED, Reason.COMPLETED, result.evidence)
    if result.outcome == "cancelled":
        # Unasked, only the deadline raises the flag; a crash may have lost the note of it.
        unasked = job.desired is not Desired.CANCEL and job.max_runtime_s is not None
        if unasked or attempt.stop_reason is Reason.DEADLINE:
            return _deadline(job)
        return Finish(State.CANCELLED, Reason.CANCELLED, result.evidence)
    if result.outcome == "paused":
        return Finish(State.PAUSED, Reason.PAUSED, result.evidence)
    if result.outcome == "interrupted":
        return _after_loss(job, attempt, seen, result.reason, result.evidence)
    return _after_error(job, result)


def _after_error(job: Job, result: Result) -> Action:
    if job.desired is Desired.CANCEL:
        return Finish(State.CANCELLED, Reason.CANCELLED, result.evidence)
    if result.reason in FINAL or job.errors >= job.max_retries:
        return Finish(State.FAILED, result.reason, result.evidence)
    delay = min(MAX_BACKOFF_S, BACKOFF_S * 2**job.errors)
    return Requeue(result.reason, result.evidence, delay, job.errors + 1, 0)


def _after_loss(job: Job, attempt: Attempt, seen: Seen, reason: Reason, evidence: str) -> Action:
    if attempt.stop_reason is Reason.DEADLINE:
        return _deadline(job)
    if job.desired is Desired.CANCEL:
        return Finish(State.CANCELLED, Reason.CANCELLED, evidence)
    if job.desired is Desired.PAUSE:
        return Finish(State.PAUSED, Reason.PAUSED, evidence)
    losses = 1 if seen.has_checkpoint else job.losses + 1
    if losses >= MAX_LOSSES:
        return Finish(
            State.FAILED,
            reason,
            f"lost {losses} times in a row without a new checkpoint; the last time: {evidence}",
        )
    delay = 0.0 if losses == 1 else min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (losses - 2))
    return Requeue(reason, evidence, delay, job.errors, losses)


def _first_words(message: str) -> str:
    """Ray's message without the end of its own log, which it appends."""
    return message.partition(", last available logs")[0].partition("\n")[0]


def _deadline(job: Job) -> Action:
    limit = job.max_runtime_s
    return Finish(State.FAILED, Reason.DEADLINE, f"stopped after max_runtime_s = {limit}")
