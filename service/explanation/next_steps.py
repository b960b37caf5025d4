"""What the user can do about a job, as commands."""

from service.api.views import JobView, View
from service.explanation.words import FINAL
from service.queue.job import Kind, State


class NextStep(View):
    """A command, and what it is for."""

    command: str
    what: str


def next_steps(job: JobView) -> list[NextStep]:
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
            steps = _of_one_that_failed(job)
        case State.CANCELLED:
            steps = [("retry", "runs it again from its checkpoint"), ("delete", "forgets it")]
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


def _of_one_that_failed(job: JobView) -> list[tuple[str, str]]:
    steps = [("logs", "what it printed, with the traceback")] if job.attempt else []
    if job.kind is Kind.SEARCH:
        steps.append(("trials --state failed", "why its trials failed"))
        steps.append(("retry", "runs what failed or was cut off again"))
    elif job.reason in FINAL:
        steps.append(("retry", "runs it again, once what the hint says is mended"))
    else:
        steps.append(("retry", "runs it again from its checkpoint"))
    return [*steps, ("delete", "forgets it")]


def _command(verb: str, job_id: str) -> str:
    if verb.startswith("jobs"):
        return f"capsctl {verb}"
    name, _, options = verb.partition(" ")
    return " ".join(part for part in ("capsctl", name, options, job_id) if part)
