"""Of a running attempt of which nothing is heard: for how long, and what comes of it."""

from service.api.views import JobView
from service.explanation.words import span

SILENT_S = 10.0
"""A worker tells of itself about once a second, but not while it saves or evaluates."""
SILENT_AT_START_S = 60.0
"""While it starts it imports PyTorch and reads its data, and tells nothing."""


def silence(job: JobView) -> str:
    """That nothing was heard of the attempt, and for how long; empty while that says nothing."""
    age_s = job.progress.heartbeat_age_s if job.progress else None
    limit_s = SILENT_AT_START_S if job.phase == "starting" else SILENT_S
    if age_s is None or age_s < limit_s:
        return ""
    return f"nothing was heard of it for {span(age_s)}"


def after_silence() -> list[str]:
    """What the queue does about it, and what else may be the cause."""
    return [
        "the queue asks Ray and looks for the attempt's processes: should it be gone, another one "
        "starts once nothing of it can be alive",
        "it may live all the same: a checkpoint, an evaluation or a loaded machine can take so "
        "long",
    ]
