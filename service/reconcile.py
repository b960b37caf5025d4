"""What is to be done about a job: one pure function over all that can be seen of it.

Level-triggered: it looks at the state of things, never at what happened in between, so a crash of
the control plane at any point is mended by the next look. Cancel, pause, deadline, retry and
recovery are the same path. No I/O here; `service.reconciler` looks and applies.
"""

import math
from dataclasses import dataclass

from service.cluster import RayJob, RayStatus
from service.queue.job import MAX_BACKOFF_S, Attempt, Desired, Job, State
from workers.attempt import Progress, Reason, Result, Resumed, StopKind, reason_of_ray

STOP_GRACE_S = 8.0
"""From the stop flag to SIGTERM: time to leave a checkpoint."""
KILL_AFTER_S = 12.0
"""From the stop flag to SIGKILL for all processes of the attempt; Ray's own grace is 3 s."""
EXIT_GRACE_S = 10.0
"""From the worker's result to the end of its process."""
CONFIRM_S = 3.0
"""Ray's word that an attempt is over, without a result, must hold for so long: FAILED can be
false while a head fails over."""
SESSION_MARGIN_S = 5.0
"""On top of the time for which Ray's processes live on without their head."""
OBEYS_KILL_S = 3.0
"""From the kill flag to the end of processes that can't be seen from here; they look for it twice
a second."""
MAX_LOSSES = 3
"""Lost attempts in a row, none of which left a checkpoint, make a poison job."""
BACKOFF_S = 10.0

BACKS_OFF = "backs off before the next attempt; not_before says until when"

FINAL = (Reason.DIVERGED, Reason.DATA_MISSING, Reason.BAD_CHECKPOINT, Reason.VERSION_MISMATCH)
"""Errors that the same specification would meet again: never retried."""


@dataclass(frozen=True)
class Processes:
    """What is left of an attempt, by the processes that have said who they are."""

    living: int = 0
    """Seen to live, on the control plane's own host."""
    gone: int = 0
    """Seen to be gone, on the same."""
    mains_elsewhere: int = 0
    """On other hosts, started by Ray as the attempt's first process: Ray knows of their end."""
    helpers_elsewhere: int = 0
    """On other hosts, started for the first one."""

    @property
    def known(self) -> bool:
        """Whether any has said who it is."""
        return bool(self.living or self.gone or self.mains_elsewhere or self.helpers_elsewhere)

    @property
    def surely_gone(self) -> bool:
        """Whether nothing else than what was seen gone can be left."""
        return self.gone > 0 and not (self.living or self.mains_elsewhere or self.helpers_elsewhere)


@dataclass(frozen=True)
class Seen:
    """What can be seen of a running job's attempt, from its folder, its processes and Ray."""

    ray: RayJob
    session: str | None = None
    """The cluster's; None while it does not answer."""
    node_dead: bool = False
    """Ray has given up the node of the attempt's first process."""
    processes: Processes = Processes()
    result: Result | None = None
    result_at: float | None = None
    """Since when it is known."""
    progress: Progress | None = None
    """What the worker last told of itself."""
    has_checkpoint: bool = False
    """Whether this attempt, or a trial in it, has left a checkpoint beyond where it began."""
    watched_s: float = math.inf
    """For how long this control plane has seen the attempt's notes as they are, by a clock that
    nobody sets. So after its start nothing is declared dead before Ray has been asked twice, and a
    clock that is set forward proves nobody's death."""


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
class Kill:
    """SIGKILL for whatever is left of the attempt, and the kill flag for what can't be seen."""

    why: str


@dataclass(frozen=True)
class NoteGone:
    """Ray says that the attempt is over (or, if not `gone`, no longer says so): remember when."""

    gone: bool


@dataclass(frozen=True)
class NoteSession:
    """The cluster's session is not the attempt's (or is again, if not `lost`): remember when."""

    lost: bool


@dataclass(frozen=True)
class NoteResumed:
    """The worker has said where it begins: tell it in the job's history."""

    resumed: Resumed


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


Action = (
    Nothing
    | Wait
    | Dispatch
    | Submit
    | RequestStop
    | StopRay
    | Kill
    | NoteGone
    | NoteSession
    | NoteResumed
    | Finish
    | Requeue
)


def reconcile_waiting(job: Job, obstacle: str, now: float) -> Action:
    """Decide over a QUEUED or PAUSED job; `obstacle` says why it can't start, if it can't."""
    if job.desired is Desired.CANCEL:
        return Finish(State.CANCELLED, Reason.CANCELLED, "cancelled while it was not running")
    if job.desired is Desired.PAUSE:
        if job.state is State.PAUSED:
            return Nothing()
        told = "paused before it ran" if job.attempt == 0 else "paused while it waited"
        return Finish(State.PAUSED, Reason.PAUSED, told)
    if job.state is State.PAUSED:
        return Requeue(Reason.PAUSED, "resumed", 0.0, job.errors, 0)
    if job.not_before is not None and now < job.not_before <= now + MAX_BACKOFF_S:
        return Wait(BACKS_OFF)
    return Wait(obstacle) if obstacle else Dispatch()


def reconcile(
    job: Job, attempt: Attempt, seen: Seen, now: float, reconnect_timeout_s: float
) -> Action:
    """Decide over a RUNNING job.

    Args:
        job: The job.
        attempt: Its current attempt.
        seen: What can be seen of it.
        now: By the clock of the attempt's times.
        reconnect_timeout_s: For how long Ray's processes live on without their head.
    """
    if seen.result is not None:
        return _after_result(job, attempt, seen, seen.result, now)
    resumed = seen.progress.resumed if seen.progress else None
    if resumed is not None and attempt.resumed_step is None:
        return NoteResumed(resumed)
    if _session_lost(attempt, seen):
        return _in_a_lost_session(job, attempt, seen, now, reconnect_timeout_s)
    if attempt.session_lost_at is not None and seen.ray.status.alive:
        return NoteSession(lost=False)
    missing = seen.ray.status is RayStatus.MISSING
    if attempt.submitted_at is None and not (missing and seen.processes.known):
        return _not_submitted(job, seen.ray.status)
    lost = seen.ray.status.over or missing or seen.node_dead
    if lost or (seen.processes.surely_gone and _may_decide(job, attempt, seen)):
        return _gone(job, attempt, seen, now)
    if attempt.gone_since is not None:  # alive, or nobody can say: Ray's word did not hold
        return NoteGone(gone=False)
    return _while_running(job, attempt, seen, now)


def _session_lost(attempt: Attempt, seen: Seen) -> bool:
    """Whether the head that knew the attempt is no more."""
    if seen.session is None or seen.ray.status.alive:
        return False
    if attempt.session is None:  # of a release that did not note it
        return seen.ray.status is RayStatus.MISSING
    return seen.session != attempt.session


def _may_decide(job: Job, attempt: Attempt, seen: Seen) -> bool:
    """Whether what is seen without Ray's word is enough.

    While Ray is away another attempt could not start, and whether the head died, which is nobody's
    fault, shows when it is back. A job that was to leave need not wait for that.
    """
    to_leave = job.desired is not Desired.RUN or attempt.stop_reason is not None
    return seen.ray.status.alive or to_leave


def _not_submitted(job: Job, ray: RayStatus) -> Action:
    if ray is RayStatus.UNREACHABLE:
        return Nothing()
    if job.desired is Desired.CANCEL and ray is RayStatus.MISSING:
        return Finish(State.CANCELLED, Reason.CANCELLED, "cancelled before Ray was called")
    return Submit()


def _in_a_lost_session(
    job: Job, attempt: Attempt, seen: Seen, now: float, reconnect_timeout_s: float
) -> Action:
    """Its processes end by themselves once Ray's have given the head up, and nobody is asked."""
    if attempt.session_lost_at is None or attempt.session_lost_at > now:
        return NoteSession(lost=True)
    left = seen.processes
    elsewhere = left.mains_elsewhere or left.helpers_elsewhere
    if left.living or (elsewhere and attempt.killed_at is None):
        return Kill("the Ray head was restarted and knows the attempt no more")
    waited_s = _waited_s(attempt.session_lost_at, seen, now)
    died_out = waited_s >= reconnect_timeout_s + SESSION_MARGIN_S
    if not (left.surely_gone or died_out):
        return Nothing()
    evidence = "the Ray head was restarted, and the worker left no result"
    return _after_loss(job, attempt, seen, Reason.NODE_LOST, evidence)


def _gone(job: Job, attempt: Attempt, seen: Seen, now: float) -> Action:
    """The attempt is over, by Ray or by what is seen; the worker has left no result."""
    if attempt.gone_since is None or attempt.gone_since > now:
        return NoteGone(gone=True)
    confirmed = _waited_s(attempt.gone_since, seen, now) >= CONFIRM_S
    both_say_so = seen.processes.surely_gone and not seen.ray.status.alive
    if not (confirmed or both_say_so):
        return Nothing()
    if (left := _clear(attempt, seen, now)) is not None:
        return left
    if seen.node_dead:
        return _after_loss(job, attempt, seen, Reason.NODE_LOST, "Ray has given the node up")
    said = "" if seen.ray.status is RayStatus.UNREACHABLE else _first_words(seen.ray.message)
    said = said or f"Ray says {seen.ray.status}, and the worker left no result"
    return _after_loss(job, attempt, seen, reason_of_ray(seen.ray.message), said)


def _clear(attempt: Attempt, seen: Seen, now: float) -> Action | None:
    """What is to be done until nothing of an attempt that is over can be left; None if so."""
    left = seen.processes
    if left.living or (left.helpers_elsewhere and attempt.killed_at is None):
        return Kill("the attempt is over, and this was left of it")
    killed_at = now if attempt.killed_at is None else attempt.killed_at
    if left.helpers_elsewhere and _waited_s(killed_at, seen, now) < OBEYS_KILL_S:
        return Nothing()
    return None


def _waited_s(since: float, seen: Seen, now: float) -> float:
    """How long ago something was noted, whatever became of the clock since."""
    by_the_clock = now - since
    return seen.watched_s if by_the_clock < 0 else min(by_the_clock, seen.watched_s)


def _while_running(job: Job, attempt: Attempt, seen: Seen, now: float) -> Action:
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
    if attempt.stop_requested_at > now and attempt.stop_kind and attempt.stop_reason:
        return RequestStop(attempt.stop_kind, attempt.stop_reason)  # the clock was set back
    return _insist(attempt, seen, now - attempt.stop_requested_at)


def _insist(attempt: Attempt, seen: Seen, waited_s: float) -> Action:
    """The attempt was asked to leave so long ago."""
    if waited_s > KILL_AFTER_S and (seen.processes.living or attempt.killed_at is None):
        return Kill(f"no answer to the stop flag for {KILL_AFTER_S:.0f} s")
    if seen.ray.status.alive and waited_s > STOP_GRACE_S:
        return StopRay(f"no answer to the stop flag for {STOP_GRACE_S:.0f} s")
    return Nothing()


def _after_result(job: Job, attempt: Attempt, seen: Seen, result: Result, now: float) -> Action:
    waited_s = now - (seen.result_at or now)
    if waited_s <= EXIT_GRACE_S and _may_linger(seen):
        return Nothing()
    if seen.ray.status.alive and not seen.processes.surely_gone:
        if seen.processes.living and waited_s > 2 * EXIT_GRACE_S:
            return Kill("the result is written, but the process stays")
        return StopRay("the result is written, but the process stays")
    orderly = result.outcome == "succeeded" and not seen.processes.living
    if not orderly and (left := _clear(attempt, seen, now)) is not None:
        return left
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


def _may_linger(seen: Seen) -> bool:
    """Whether a process that has written its result may be about to end."""
    unknown = seen.ray.status.alive or seen.ray.status is RayStatus.UNREACHABLE
    return bool(seen.processes.living) or (unknown and not seen.processes.surely_gone)


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
    if _session_lost(attempt, seen):  # the head's death is nobody's fault
        losses = 0 if seen.has_checkpoint else job.losses
        return Requeue(reason, evidence, 0.0, job.errors, losses)
    losses = 0 if seen.has_checkpoint else job.losses + 1
    if losses >= MAX_LOSSES:
        return Finish(
            State.FAILED,
            reason,
            f"lost {losses} times in a row without a new checkpoint; the last time: {evidence}",
        )
    delay = 0.0 if losses <= 1 else min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (losses - 2))
    return Requeue(reason, evidence, delay, job.errors, losses)


def _first_words(message: str) -> str:
    """Ray's message without the end of its own log, which it appends."""
    return message.partition(", last available logs")[0].partition("\n")[0]


def _deadline(job: Job) -> Action:
    limit = job.max_runtime_s
    return Finish(State.FAILED, Reason.DEADLINE, f"stopped after max_runtime_s = {limit}")
