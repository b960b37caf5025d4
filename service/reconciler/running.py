"""Does what was decided about a running job."""

from typing import Any

from service import reconcile as decide
from service.cluster import RayStatus
from service.queue.job import Attempt, Job
from service.queue.store import NewEvent
from service.reconciler.finishing import Finishing
from service.reconciler.orders import submit
from service.reconciler.parts import Parts, records_of
from workers import liveness
from workers.attempt import ProcessRecord, Resumed

SIGNAL_AGAIN_S = 5.0


class RunningJobs:
    """Acts on jobs whose attempt may be alive."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._finishing = Finishing(parts)
        self._signalled: dict[str, float] = {}

    def act(self, job: Job, seen: decide.Seen) -> None:
        """Decide, and do it."""
        assert job.current is not None
        now = self._parts.now()
        timeout_s = self._parts.settings.ray_reconnect_timeout_s
        action = decide.reconcile(job, job.current, seen, now, timeout_s)
        match action:
            case decide.Nothing():
                self._note_node(job, job.current, seen)
            case decide.Submit():
                submit(self._parts, job)
            case decide.RequestStop():
                self._request_stop(job, action, now)
            case decide.StopRay():
                self._signal(job, job.current, action.why, now)
            case decide.Kill():
                self._kill(job, job.current, action.why, now)
            case decide.NoteGone() | decide.NoteSession() | decide.NoteResumed():
                self._note(job, action, seen, now)
            case decide.Finish():
                self._finishing.finish(job, action, seen, now)
            case decide.Requeue():
                self._finishing.requeue(job, action, now)
            case _:
                raise AssertionError(f"{action} is not for a running job")

    def _note_node(self, job: Job, attempt: Attempt, seen: decide.Seen) -> None:
        """Where it runs: to be known when Ray no longer says so."""
        if seen.ray.node_id is not None and seen.ray.node_id != attempt.node_id:
            self._parts.store.update(job, attempt={"node_id": seen.ray.node_id})

    def _request_stop(self, job: Job, action: decide.RequestStop, now: float) -> None:
        self._parts.folder(job).request_stop(action.kind)
        event = NewEvent("stop-requested", f"the worker is asked to leave: {action.reason.value}")
        changes = {
            "stop_kind": action.kind,
            "stop_reason": action.reason,
            "stop_requested_at": now,
        }
        self._parts.store.update(job, event=event, attempt=changes)

    def _signal(self, job: Job, attempt: Attempt, why: str, now: float) -> None:
        submission = attempt.submission_id
        first = submission not in self._signalled
        if not first and abs(now - self._signalled[submission]) < SIGNAL_AGAIN_S:
            return
        self._parts.cluster.stop(submission)
        if len(self._signalled) > 1000:  # of attempts that are long over
            self._signalled.clear()
        self._signalled[submission] = now
        if first:
            event = NewEvent("signalled", f"SIGTERM, then SIGKILL: {why}")
            self._parts.store.update(job, event=event)

    def _kill(self, job: Job, attempt: Attempt, why: str, now: float) -> None:
        """What can be seen dies here and now, what can't reads the flag."""
        folder = self._parts.folder(job)
        folder.request_kill()
        living = liveness.living(records_of(folder))
        killed = [record for record in living if liveness.kill(record)]
        if attempt.killed_at is not None and not killed:
            return
        event = NewEvent("killed", f"{_in_words(killed)}: {why}", {"killed": _data(killed)})
        self._parts.store.update(job, event=event, attempt={"killed_at": now})

    def _note(
        self,
        job: Job,
        action: decide.NoteGone | decide.NoteSession | decide.NoteResumed,
        seen: decide.Seen,
        now: float,
    ) -> None:
        event: NewEvent | None = None
        changes: dict[str, Any]
        match action:
            case decide.NoteGone(gone):
                changes = {"gone_since": now if gone else None}
                if gone:
                    event = NewEvent("suspect", _suspicion(seen))
            case decide.NoteSession(lost):
                changes = {"session_lost_at": now if lost else None}
                if lost:
                    event = NewEvent("cluster-restarted", "the Ray head is another one now")
            case decide.NoteResumed(resumed):
                changes = {"resumed_step": resumed.step}
                event = NewEvent("resumed", _resumed(resumed), resumed.model_dump())
        self._parts.store.update(job, event=event, attempt=changes)


def _suspicion(seen: decide.Seen) -> str:
    if seen.ray.status.over or seen.ray.status is RayStatus.MISSING:
        return f"Ray says {seen.ray.status}; no result yet"
    if seen.node_dead:
        return "Ray has given its node up; no result yet"
    return "its processes are gone; no result yet"


def _resumed(resumed: Resumed) -> str:
    if resumed.attempt is None:
        text = "no checkpoint verifies: it begins anew"
    else:
        text = (
            f"goes on from step {resumed.step}, epoch {resumed.epoch} (attempt {resumed.attempt})"
        )
    skipped = len(resumed.skipped)
    if skipped:
        text += f"; {skipped} checkpoint{'s' if skipped > 1 else ''} passed over"
    return text


def _in_words(killed: list[ProcessRecord]) -> str:
    if not killed:
        return "whatever is left is told to die"
    return f"SIGKILL to {', '.join(f'{record.role} (process {record.pid})' for record in killed)}"


def _data(killed: list[ProcessRecord]) -> list[dict[str, Any]]:
    return [record.model_dump(include={"pid", "role"}) for record in killed]
