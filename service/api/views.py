"""What the API answers: Pydantic models, shared with the client. Imports no web framework."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.queue.job import Desired, Kind, State
from service.tokens import LOCAL
from workers.attempt import CheckpointRef, Reason, TrialCounts

Phase = Literal[
    "waiting",
    "waiting-to-retry",
    "dispatching",
    "starting",
    "training",
    "searching",
    "evaluating",
    "finishing",
    "stopping",
    "cancelling",
    "pausing",
    "suspect",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
]


class View(BaseModel):
    """Base of all answers. Unknown fields are ignored: an older client reads a newer server."""

    model_config = ConfigDict(use_attribute_docstrings=True, ser_json_inf_nan="null")


class ProgressView(View):
    """How far the current attempt is."""

    epoch: int
    """Epochs completed."""
    epochs: int
    step: int
    """Optimizer steps done."""
    steps: int
    fraction: float
    """Share of the steps that is done, or of a search's trials, 0 to 1."""
    images_per_s: float | None = None
    eta_s: float | None = None
    """Seconds left, by the worker's estimate."""
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_accuracy: float | None = None
    trials: TrialCounts | None = None
    """Of a search: how many trials are where."""
    best_score: float | None = None
    """Of a search: the best configuration's mean."""
    heartbeat_age_s: float | None = None
    """Seconds since the worker last told of itself."""


class ResultView(View):
    """What the last attempt that ended by itself left."""

    metrics: dict[str, float | None] = {}
    checkpoints: dict[str, CheckpointRef] = {}
    """Files below CAPS_STORAGE."""
    artifacts: list[str] = []
    """Files below CAPS_STORAGE."""
    tracking: str = "complete"
    """`complete`, or what the worker could not write to MLflow: metrics are sent afterwards."""


class MlflowView(View):
    """The job's run in MLflow."""

    experiment_id: str
    run_id: str
    url: str
    closed: bool | None = None
    """Whether all metrics were sent and the run has its final status; null of a trial's run."""


class JobLinks(View):
    """Where more about the job is found."""

    self: str
    """Also what a DELETE goes to, once the job has ended."""
    cancel: str
    pause: str
    resume: str
    retry: str
    logs: str
    events: str
    attempts: str
    search: str | None = None
    """Of a search: its trials and verbs."""


class JobItem(View):
    """A job in a list: all but its specification."""

    id: str
    kind: Kind
    name: str
    experiment: str
    labels: dict[str, str]
    priority: int
    owner: str = LOCAL
    """Who submitted it: the owner of the token, `local` where no tokens are asked for."""
    state: State
    phase: Phase
    """A finer word for the state, derived for display."""
    desired: Desired
    """What the user wants of the job."""
    reason: Reason | None = None
    """Why the job ended, or its last attempt did."""
    evidence: str = ""
    """The line that tells, such as an exception's message."""
    hint: str | None = None
    waiting_reason: str | None = None
    """Why a queued job is not running yet."""
    position: int | None = None
    """Place in the queue, from 1."""
    attempt: int
    """Number of the current attempt; 0 before the first."""
    progress: ProgressView | None = None
    result: ResultView | None = None
    mlflow: MlflowView | None = None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    not_before: datetime | None = None
    """When a retry may begin."""
    links: JobLinks


class JobView(JobItem):
    """A job."""

    spec: dict[str, Any]
    """The specification, complete with its defaults: see GET /v1/schema/train or search."""


class JobPage(View):
    """A page of jobs, the newest first."""

    jobs: list[JobItem]
    next_cursor: str | None = None
    """Pass it as `cursor` to read on; null on the last page."""


class EventView(View):
    """One line of a job's history."""

    id: int
    job: str
    attempt: int
    at: datetime
    type: str
    message: str
    data: dict[str, Any]


class EventPage(View):
    """Events in order."""

    events: list[EventView]
    next_after: int
    """Pass it as `after` to read on."""


class AttemptView(View):
    """One try to run a job."""

    number: int
    """From 1."""
    created_at: datetime
    """When it was decided upon."""
    submitted_at: datetime | None = None
    """When Ray accepted it."""
    ended_at: datetime | None = None
    """When nothing of it was left; null while that is not known."""
    duration_s: float | None = None
    """Seconds from `created_at` to its end, or to now."""
    resumed_step: int | None = None
    """Optimizer steps that earlier attempts had done; 0 where it began anew."""
    reason: Reason | None = None
    """Why it ended."""
    evidence: str = ""
    """The line that tells, such as an exception's message."""
    hint: str | None = None
    stop_reason: Reason | None = None
    """Why it was asked to leave, if it was."""
    stop_requested_at: datetime | None = None
    killed_at: datetime | None = None
    """When what was left of it was first killed."""
    node_id: str | None = None
    """Ray's node of its first process."""
    logs: str
    """Where its log is read."""


class AttemptPage(View):
    """All attempts of a job, the first one first."""

    attempts: list[AttemptView]


class HealthView(View):
    """The API's process is alive."""

    status: Literal["ok"] = "ok"
    version: str
    stack: str
    """CAPS_STACK_ID, so that `capsctl up` knows its own."""


class CheckView(View):
    """Whether one part answers."""

    ok: bool
    detail: str | None = None


class ReadyView(View):
    """Whether jobs can be accepted and run."""

    status: Literal["ready", "not-ready"]
    checks: dict[str, CheckView]


class FieldProblem(View):
    """What is wrong with one field."""

    pointer: str
    """JSON pointer to the field in the body, or `/query/<name>` for a parameter."""
    detail: str
    value: str | int | float | bool | None = None
    accepted: str | None = None
    hint: str | None = None


class Problem(View):
    """Every error: RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []
    hint: str | None = None
    request_id: str | None = None
