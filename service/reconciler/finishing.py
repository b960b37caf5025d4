"""Ends an attempt: the job with it, or to be tried again."""

from typing import Any

from service import reconcile as decide
from service.queue.job import Job, State
from service.queue.store import NewEvent
from service.reconciler.parts import EVIDENCE_LENGTH, Parts
from workers.attempt import Reason


class Finishing:
    """Writes the end of an attempt, of a job, or of a job that never ran."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def finish(self, job: Job, action: decide.Finish, seen: decide.Seen | None, now: float) -> None:
        """The job ends, or is paused."""
        result = seen.result if seen else None
        if job.state is State.RUNNING and result is None:
            # Should anything be left of the attempt, or come up late, it leaves by itself.
            self._parts.folder(job).request_stop("cancel")
        evidence = action.evidence[:EVIDENCE_LENGTH]
        told = evidence or action.reason.value
        self._parts.store.update(
            job,
            event=NewEvent(action.state.value.lower(), told, _receipt(job, action, seen, now)),
            attempt=_attempt_ended(job, action, now),
            state=action.state,
            reason=action.reason,
            evidence=evidence,
            waiting_reason="",
            finished_at=now if action.state.terminal else None,
            result=result.model_dump(mode="json") if result else job.result,
        )
        self._parts.wake()  # its place is free: look at the queue again at once

    def requeue(self, job: Job, action: decide.Requeue, now: float) -> None:
        """Another attempt is due."""
        self._parts.store.update(
            job,
            event=_queued_again(job, action),
            attempt=_attempt_ended(job, action, now),
            state=State.QUEUED,
            reason=action.reason,
            evidence=action.evidence[:EVIDENCE_LENGTH],
            waiting_reason=decide.BACKS_OFF if action.delay_s else "",
            errors=action.errors,
            losses=action.losses,
            not_before=now + action.delay_s if action.delay_s else None,
        )
        self._parts.wake()


def _queued_again(job: Job, action: decide.Requeue) -> NewEvent:
    """What is told of it: a resume ends no attempt, all else was a loss or an error."""
    if job.state is State.PAUSED:
        return NewEvent("unpaused", "back in the queue")
    told = f"{action.reason.value}: {action.evidence}"[:500]
    loss = action.errors == job.errors  # costs no retry
    data = {"reason": action.reason.value, "delay_s": action.delay_s, "loss": loss}
    return NewEvent("requeued", told, data)


def _attempt_ended(
    job: Job, action: decide.Finish | decide.Requeue, now: float
) -> dict[str, Any] | None:
    """The change to the attempt's row, where an attempt ends with the change of the job."""
    if job.state is not State.RUNNING or job.current is None:
        return None
    evidence = action.evidence[:EVIDENCE_LENGTH]
    return {"ended_at": now, "reason": action.reason, "evidence": evidence}


def _receipt(
    job: Job, action: decide.Finish, seen: decide.Seen | None, now: float
) -> dict[str, Any]:
    """How an attempt ended: after which step, how long it took to leave, whether it was killed.

    Also whether it left a result, since the job keeps an earlier attempt's where it left none; and
    of a failure, whether the attempt was lost.
    """
    reason: dict[str, Any] = {"reason": action.reason.value}
    if seen is None or job.current is None:
        return reason
    if action.state is State.FAILED:
        reason["loss"] = _lost(action, seen)
    step = seen.result.step if seen.result else seen.progress.step if seen.progress else None
    asked = job.current.stop_requested_at
    return reason | {
        "step": step,
        "took_s": None if asked is None else round(now - asked, 1),
        "killed": job.current.killed_at is not None,
        "result": seen.result is not None,
    }


def _lost(action: decide.Finish, seen: decide.Seen) -> bool:
    """Whether the infrastructure ended it, and neither an error nor the deadline."""
    cut_off = seen.result is None or seen.result.outcome == "interrupted"
    return cut_off and action.reason is not Reason.DEADLINE
