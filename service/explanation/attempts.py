"""The attempts of a job, told from its events: when, from which step on, and what ended each."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.api.views import EventView, JobView, View
from service.explanation.silence import silence
from service.explanation.words import because, reason_of, span
from service.queue.job import State
from service.reconcile import MAX_LOSSES
from workers.attempt import Reason

ENDS = ("requeued", "succeeded", "failed", "cancelled", "paused")
"""Events that end an attempt, if one is under way."""

LOSSES = (Reason.WORKER_LOST, Reason.NODE_LOST, Reason.INTERRUPTED)
"""What only the infrastructure does. Memory runs out by the training's fault, or by Ray's hand."""


class AttemptStory(View):
    """What became of one attempt."""

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    duration_s: float
    """Up to now, of one that runs."""
    began: str
    """From where it went on."""
    ended: str
    """What ended it, or that it goes on."""
    reason: Reason | None = None
    """Why it ended, where an event says so."""
    lost: bool = False
    """Whether the infrastructure ended it, which uses up none of the job's own retries."""
    skipped: list[str]
    """Why checkpoints were passed over, the newest first."""


@dataclass
class _Attempt:
    """Events of one attempt."""

    started: EventView
    resumed: EventView | None = None
    end: EventView | None = None
    marks: set[str] = field(default_factory=set)


def attempt_stories(job: JobView, events: Iterable[EventView], now: datetime) -> list[AttemptStory]:
    """One story an attempt, the first one first."""
    attempts = _gathered(events)
    return [_story(job, number, each, now) for number, each in sorted(attempts.items())]


def given_up(job: JobView, attempts: Sequence[AttemptStory]) -> bool:
    """Whether the job failed since its attempts were lost again and again."""
    return job.state is State.FAILED and bool(attempts) and attempts[-1].lost


def left_nothing(job: JobView, attempts: Sequence[AttemptStory]) -> bool:
    """Whether there is surely no checkpoint: it never ran, or all it ever did was to be lost."""
    if job.attempt == 0:
        return True
    # Only losses without a checkpoint lead there, so that many attempts were nothing else.
    return given_up(job, attempts) and job.attempt <= MAX_LOSSES


def receipt(data: dict[str, Any], marks: Collection[str]) -> str:
    """How an attempt left that was asked to; empty where nothing is known.

    Args:
        data: Of the event that ended it.
        marks: Types of the attempt's events.
    """
    took, step = data.get("took_s"), data.get("step")
    parts = []
    if took is not None:
        parts.append(f"gone {span(took)} after it was asked to leave")
    if step is not None:
        parts.append(f"at step {step}")
    told = ", ".join(parts)
    if took is None and not data.get("killed"):
        return told
    left = _how_it_left(bool(data.get("killed")), marks)
    return "; ".join(part for part in (told, left) if part)


def _how_it_left(killed: bool, marks: Collection[str]) -> str:
    if killed:
        return "what was left of it had to be killed"
    if "signalled" in marks:
        return "it had to be ended by signals"
    if "suspect" in marks or "cluster-restarted" in marks:
        return "how it came to its end is not known"
    return "it left by itself"


def _gathered(events: Iterable[EventView]) -> dict[int, _Attempt]:
    found: dict[int, _Attempt] = {}
    for event in events:
        if event.type == "started":
            found[event.attempt] = _Attempt(event)
        attempt = found.get(event.attempt)
        if attempt is None or attempt.end is not None:
            continue
        attempt.marks.add(event.type)
        if event.type == "resumed":
            attempt.resumed = event
        if event.type in ENDS:
            attempt.end = event
    return found


def _story(job: JobView, number: int, attempt: _Attempt, now: datetime) -> AttemptStory:
    end = attempt.end
    until = now if end is None else end.at
    resumed = attempt.resumed.data if attempt.resumed else {}
    lost = end is not None and _is_loss(job, end, attempt.marks)
    return AttemptStory(
        number=number,
        started_at=attempt.started.at,
        ended_at=None if end is None else end.at,
        duration_s=round(max(0.0, (until - attempt.started.at).total_seconds()), 1),
        began=_began(job, number, attempt),
        ended=_going_on(job, attempt) if end is None else _ended(end, attempt, lost),
        reason=None if end is None else _reason(job, end),
        lost=lost,
        skipped=[str(why) for why in resumed.get("skipped", [])],
    )


def _began(job: JobView, number: int, attempt: _Attempt) -> str:
    if attempt.resumed is not None:
        return _resumed(attempt.resumed.data)
    if number == 1:
        source = job.spec.get("init_from") or {}
        if source.get("job"):
            return f"with the {source.get('checkpoint', 'best')} weights of job {source['job']}"
        if source.get("path"):
            return f"with the weights of {source['path']}"
        return "from the beginning"
    if job.kind == "search":
        return "with the trials that were left"
    going = attempt.end is None and (job.progress is None or job.progress.step == 0)
    return "from where is not known yet" if going else "from the beginning: no checkpoint was left"


def _resumed(data: dict[str, Any]) -> str:
    if data.get("attempt") is None:
        return "from the beginning: no checkpoint was whole"
    return (
        f"from step {data.get('step')} (epoch {data.get('epoch')}), the checkpoint of attempt "
        f"{data['attempt']}"
    )


def _going_on(job: JobView, attempt: _Attempt) -> str:
    """Of an attempt that has not ended."""
    if "cluster-restarted" in attempt.marks:
        return "the Ray head was restarted: it is given up once it is surely gone"
    if job.phase == "suspect":
        return "it seems to be over; it is being made sure"
    if "dispatched" not in attempt.marks:
        return "is being handed to Ray"
    return silence(job) or f"goes on: {job.phase}"


def _ended(end: EventView, attempt: _Attempt, lost: bool) -> str:
    if end.type == "requeued":
        named, _, evidence = end.message.partition(": ")
        delay = end.data.get("delay_s")
        again = f"tried again after {span(delay)}" if delay else "tried again at once"
        return f"{because(reason_of(named), evidence)}; {again}"
    if end.type == "succeeded":
        return "succeeded"
    if end.type == "failed" and lost:  # the evidence sums up all losses: it is told of the job
        return "lost as well, and the job given up"
    told = receipt(end.data, attempt.marks)
    if end.type == "failed":
        return f"failed: {end.message}" + (f" ({told})" if end.data.get("took_s") else "")
    return f"{end.type}: {told}" if told else end.type


def _reason(job: JobView, end: EventView) -> Reason | None:
    if end.type == "requeued":
        return reason_of(end.message.partition(":")[0])
    if end.type in ("cancelled", "paused"):
        return Reason(end.type)
    if end.type == "succeeded":
        return Reason.COMPLETED
    if reason := reason_of(end.data.get("reason")):
        return reason
    last = job.state == "FAILED" and end.attempt == job.attempt
    return job.reason if last else reason_of(end.message)


def _is_loss(job: JobView, end: EventView, marks: Collection[str]) -> bool:
    """Whether the queue counted the end as a loss, not as an error of the training.

    Where memory ran out the events tell: Ray's killer leaves no result, so that the attempt was
    suspect first, and only after a loss another attempt may follow at once.
    """
    if end.type not in ("requeued", "failed"):
        return False
    if isinstance(told := end.data.get("loss"), bool):
        return told
    reason = _reason(job, end)
    if reason is not Reason.OUT_OF_MEMORY:
        return reason in LOSSES
    at_once = end.type == "requeued" and end.data.get("delay_s") == 0
    return at_once or "suspect" in marks
