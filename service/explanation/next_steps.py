"""What the user can do about a job, as commands."""

from collections.abc import Sequence

from service.api.views import JobView, View
from service.explanation.attempts import AttemptStory, left_nothing
from service.queue.job import Kind, State
from service.reconcile import FINAL
from workers.attempt import Reason

RAISED = (Reason.ERROR, Reason.DIVERGED, Reason.DATA_MISSING, Reason.BAD_CHECKPOINT)
"""Ends by an exception of the worker's own. Memory also runs out by Ray's hand."""


class NextStep(View):
    """A command, and what it is for."""

    command: str
    what: str


def next_steps(job: JobView, attempts: Sequence[AttemptStory]) -> list[NextStep]:
    """The most useful first."""
    match job.state:
        case State.QUEUED:
            steps = _of_one_that_waits(job)
        case State.RUNNING:
            steps = _of_one_that_runs(job)
        case State.PAUSED:
            steps = [("resume", "lets it go on"), ("cancel", "ends it")]
        case State.SUCCEEDED:
            steps = [("show", "results, files and the run in MLflow"), ("delete", "forgets it")]
        case State.FAILED:
            steps = _of_one_that_failed(job, attempts)
        case State.CANCELLED:
            steps = [("retry", _again(job, attempts)), ("delete", "forgets it")]
    return [NextStep(command=_command(verb, job.id), what=what) for verb, what in steps]


def _of_one_that_waits(job: JobView) -> list[tuple[str, str]]:
    steps = [("jobs --state running", "what runs now"), ("watch", "waits with it")]
    if job.attempt:
        steps.insert(0, ("logs", f"what attempt {job.attempt} printed"))
    return [*steps, ("pause", "keeps it from starting"), ("cancel", "ends it")]


def _of_one_that_runs(job: JobView) -> list[tuple[str, str]]:
    if job.desired == "cancel":
        return [("watch", "follows it to its end")]
    steps = [("watch", "its progress"), ("logs -f", "what it prints")]
    if job.desired == "pause":
        return [*steps, ("resume", "takes the pause back"), ("cancel", "ends it")]
    return [*steps, ("pause", "frees its place for a while"), ("cancel", "ends it")]


def _of_one_that_failed(job: JobView, attempts: Sequence[AttemptStory]) -> list[tuple[str, str]]:
    printed = "what it printed" + (", with the traceback" if job.reason in RAISED else "")
    steps = [("logs", printed)] if job.attempt else []
    if job.kind is Kind.SEARCH:
        steps.append(("trials --state failed", "why its trials failed"))
    if job.kind is Kind.TRAIN and job.reason in FINAL:
        steps.append(("retry", "runs it again, once what the hint says is mended"))
    else:
        steps.append(("retry", _again(job, attempts)))
    return [*steps, ("delete", "forgets it")]


def _again(job: JobView, attempts: Sequence[AttemptStory]) -> str:
    """What a retry does."""
    if left_nothing(job, attempts):
        return "runs it from the beginning"
    if job.kind is Kind.SEARCH:
        return "runs what failed or was cut off again"
    return "runs it again, from its newest whole checkpoint if it left one"


def _command(verb: str, job_id: str) -> str:
    if verb.startswith("jobs"):
        return f"capsctl {verb}"
    name, _, options = verb.partition(" ")
    return " ".join(part for part in ("capsctl", name, options, job_id) if part)
