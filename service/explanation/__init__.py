"""Why a job waits, failed, was retried or cancelled: in plain words, from the job and its events.

Pure: what it tells follows from its arguments. `capsctl explain` prints it.
"""

from collections.abc import Sequence
from datetime import datetime

from service.api.views import EventView, JobView, ProgressView, ResultView, View
from service.explanation.attempts import (
    AttemptStory,
    attempt_stories,
    left_nothing,
    receipt,
)
from service.explanation.next_steps import NextStep, next_steps
from service.explanation.silence import after_silence, silence
from service.explanation.skipped import passed_over
from service.explanation.words import because, clock, counted, listed, sentence, span
from service.queue.job import Kind, State
from workers.attempt import Reason

__all__ = ["AttemptStory", "Explanation", "NextStep", "explain"]

LEAVING = ("cancelling", "pausing", "stopping")
"""Phases of an attempt that was asked to leave."""


class Explanation(View):
    """What is to be told of a job."""

    job: str
    kind: Kind
    name: str
    state: State
    reason: Reason | None = None
    summary: str
    """One sentence: where the job is, and why."""
    details: list[str]
    """More sentences: what holds it, how often it was tried, what became of its checkpoints."""
    hint: str | None = None
    attempts: list[AttemptStory]
    next: list[NextStep]
    """What can be done now."""


def explain(job: JobView, events: Sequence[EventView], now: datetime) -> Explanation:
    """Tell of a job.

    Args:
        job: As it is now.
        events: All of its history, in order.
        now: In the time zone in which times are to be told.
    """
    attempts = attempt_stories(job, events, now)
    return Explanation(
        job=job.id,
        kind=job.kind,
        name=job.name,
        state=job.state,
        reason=job.reason,
        summary=sentence(_summary(job, events, now)),
        details=[sentence(text) for text in _details(job, events, attempts, now)],
        hint=job.hint if job.state is State.FAILED else None,
        attempts=attempts,
        next=next_steps(job, attempts),
    )


# ------------------------------------------------------------------------------------ summary


def _summary(job: JobView, events: Sequence[EventView], now: datetime) -> str:
    match job.state:
        case State.QUEUED:
            return _waits(job, now)
        case State.RUNNING:
            return _runs(job, events, now)
        case State.PAUSED:
            return f"it is paused{_since(events, 'paused', now)}"
        case State.SUCCEEDED:
            return f"it succeeded{_at(job, now)}{_in_attempt(job)}"
        case State.FAILED:
            return f"it failed{_at(job, now)}{_in_attempt(job)}: {because(job.reason, '')}"
        case State.CANCELLED:
            return f"it was cancelled{_at(job, now)}"


def _waits(job: JobView, now: datetime) -> str:
    if job.desired != "run":
        return f"it waits, and {job.waiting_reason or 'will not start'}"
    what = f"attempt {job.attempt + 1}" if job.attempt else "its first attempt"
    if job.not_before is not None and job.not_before > now:
        left = span((job.not_before - now).total_seconds())
        return f"it waits until {clock(job.not_before, now)}, for {left} more, before {what}"
    place = f" at position {job.position} of the queue" if job.position else " in the queue"
    return f"it waits{place} for {what}"


def _runs(job: JobView, events: Sequence[EventView], now: datetime) -> str:
    what = f"attempt {job.attempt}"
    if job.phase in LEAVING:
        asked = _last(events, "stop-requested", job.attempt)
        for_s = f" for {span((now - asked.at).total_seconds())}" if asked else ""
        return f"{what} is asked to leave a checkpoint and go{for_s} ({job.phase})"
    if job.phase == "suspect":
        return f"{what} seems to have ended without a result; it is being made sure"
    if job.phase == "dispatching":
        return f"{what} is being handed to Ray"
    silent = silence(job)
    if job.phase == "starting" or job.progress is None:
        return f"{what} is starting" if not silent else f"{what} was starting; {silent}"
    told = [f"{what} {'was' if silent else 'is'} {job.phase}", *_how_far(job.progress)]
    if silent:
        return f"{', '.join(told)}; {silent}"
    if job.progress.eta_s is not None:
        told.append(f"about {span(job.progress.eta_s)} left")
    return ", ".join(told)


def _how_far(progress: ProgressView) -> list[str]:
    if progress.trials is not None:
        return [f"{progress.trials.ended} of {progress.trials.total} trials have ended"]
    if progress.steps:
        return [
            f"epoch {progress.epoch} of {progress.epochs}",
            f"step {progress.step} of {progress.steps}",
        ]
    return []


def _at(job: JobView, now: datetime) -> str:
    return "" if job.finished_at is None else f" at {clock(job.finished_at, now)}"


def _in_attempt(job: JobView) -> str:
    return f", in attempt {job.attempt}" if job.attempt > 1 else ""


def _since(events: Sequence[EventView], kind: str, now: datetime) -> str:
    event = _last(events, kind)
    return f" since {clock(event.at, now)}" if event else ""


# ------------------------------------------------------------------------------------ details


def _details(
    job: JobView, events: Sequence[EventView], attempts: Sequence[AttemptStory], now: datetime
) -> list[str]:
    told: list[str] = []
    if job.state is State.QUEUED:
        told += _what_holds_it(job)
    if job.state is State.RUNNING:
        told += _troubles(job, events, now)
    if job.state is State.FAILED and job.evidence:
        told.append(job.evidence)
    told += _receipts(job, events)
    told += _retries(attempts)
    told += _checkpoints(job, attempts)
    told += _tracking(job, events)
    return told


def _what_holds_it(job: JobView) -> list[str]:
    backs_off = job.phase == "waiting-to-retry"
    told = [] if backs_off or not job.waiting_reason else [job.waiting_reason]
    if job.attempt and job.reason not in (None, Reason.PAUSED):
        told.append(f"attempt {job.attempt} ended: {because(job.reason, job.evidence)}")
    return told


def _troubles(job: JobView, events: Sequence[EventView], now: datetime) -> list[str]:
    """What has happened to the running attempt."""
    told = []
    for event in events:
        if event.attempt != job.attempt:
            continue
        at = clock(event.at, now)
        if event.type == "cluster-restarted":
            told.append(
                f"at {at} the Ray head was another one; a new attempt begins when this one is "
                "surely gone"
            )
        if event.type in ("suspect", "signalled", "killed"):
            told.append(f"at {at}: {event.message}")
    seen_to = told or job.phase in LEAVING or not silence(job)
    return told if seen_to else after_silence()


def _receipts(job: JobView, events: Sequence[EventView]) -> list[str]:
    """How the job left its place."""
    if job.state not in (State.CANCELLED, State.PAUSED):
        return []
    end = _last(events, job.state.value.lower())
    if end is None:
        return []
    told = receipt(end.data, {event.type for event in events if event.attempt == end.attempt})
    return [f"it was {told}" if told.startswith("gone") else told] if told else [end.message]


def _retries(attempts: Sequence[AttemptStory]) -> list[str]:
    if len(attempts) < 2:
        return []
    before = [attempt.reason for attempt in attempts[:-1]]
    kinds = {
        "loss": sum(attempt.lost for attempt in attempts[:-1]),
        "pause": before.count(Reason.PAUSED),
        "cancellation": before.count(Reason.CANCELLED),
        "deadline": before.count(Reason.DEADLINE),
        "success": before.count(Reason.COMPLETED),
    }
    kinds["error"] = len(before) - sum(kinds.values())
    why = [counted(number, noun) for noun, number in kinds.items() if number]
    return [f"it was begun {len(attempts)} times, after {listed(why)}"]


def _checkpoints(job: JobView, attempts: Sequence[AttemptStory]) -> list[str]:
    skipped = passed_over(why for attempt in attempts for why in attempt.skipped)
    told = [skipped] if skipped else []
    result = _last_result(job)
    for kept, checkpoint in (result.checkpoints if result else {}).items():
        told.append(
            f"its {kept} checkpoint is of epoch {checkpoint.epoch}, step {checkpoint.step}: "
            f"{checkpoint.path}"
        )
    left = result is not None and result.checkpoints
    unknown = not left and not left_nothing(job, attempts)
    if job.state in (State.FAILED, State.CANCELLED) and unknown:
        told.append("a retry goes on from the newest checkpoint that is whole, if it left one")
    return told


def _last_result(job: JobView) -> ResultView | None:
    """What the attempt left with which the job ended.

    The result of an earlier one names files that may have been damaged or removed since.
    """
    if job.result is None or not job.state.terminal:
        return None
    own = f"jobs/{job.id}/{job.attempt}/"
    of_trials = job.kind is Kind.SEARCH
    paths = [checkpoint.path for checkpoint in job.result.checkpoints.values()]
    return job.result if of_trials or all(path.startswith(own) for path in paths) else None


def _left_by_the_last(job: JobView, events: Sequence[EventView]) -> bool:
    """Whether the job's result is its last attempt's, and not an earlier one's."""
    telling = [event for event in events if "result" in event.data]
    if telling:
        return any(event.data["result"] and event.attempt == job.attempt for event in telling)
    # A history of an earlier release: there is no other attempt, or the checkpoints' folder tells.
    result = _last_result(job)
    return result is not None and (job.attempt == 1 or bool(result.checkpoints))


def _tracking(job: JobView, events: Sequence[EventView]) -> list[str]:
    """What MLflow lacks. Metrics are sent by the control plane where the worker could not."""
    result = _last_result(job)
    if result is None or result.tracking == "complete" or not _left_by_the_last(job, events):
        return []
    why = result.tracking.removeprefix("incomplete: ")
    told = [f"when its worker ended, MLflow had not got everything: {why}"]
    if job.mlflow is not None and job.mlflow.closed:
        metrics = "the control plane has sent the metrics since"
    else:
        metrics = "the control plane sends the metrics before it closes the run"
    return [*told, f"{metrics}; pictures, models and other files may be missing in MLflow"]


def _last(events: Sequence[EventView], kind: str, attempt: int | None = None) -> EventView | None:
    fitting = (e for e in events if e.type == kind and attempt in (None, e.attempt))
    return max(fitting, key=lambda event: event.id, default=None)
