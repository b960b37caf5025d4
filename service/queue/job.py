"""The records of the queue. Frozen: a change of state is a new record that the store wrote.

QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED        (terminal)
  ^         |  |
  |         |  +-> PAUSED -> QUEUED | CANCELLED
  +---------+      a new attempt, after an error with retries left or a lost worker

What is terminal is QUEUED again by the user's word alone: a failed or cancelled training that is to
be retried, a search whose failed trials are.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service.tokens import LOCAL
from workers.attempt import Reason, StopKind
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

AnySpec = TrainSpec | SearchSpec

MAX_BACKOFF_S = 600.0
"""The longest time before another attempt."""


class Kind(StrEnum):
    """What a job runs."""

    TRAIN = "train"
    SEARCH = "search"

    @property
    def spec(self) -> type[AnySpec]:
        """What it is specified by."""
        return SearchSpec if self is Kind.SEARCH else TrainSpec


class State(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


TERMINAL = tuple(state for state in State if state.terminal)


class Desired(StrEnum):
    """What the user wants of a job."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"
    DELETE = "delete"
    """Nothing: it has ended, and is to be forgotten with all its files."""


@dataclass(frozen=True)
class Attempt:
    """One try to run a job; times in seconds since 1970."""

    job_id: str
    number: int
    created_at: float
    submitted_at: float | None = None
    """When Ray accepted it; None while that is not known."""
    stop_kind: StopKind | None = None
    stop_reason: Reason | None = None
    stop_requested_at: float | None = None
    gone_since: float | None = None
    """When Ray's word was first that the attempt is over, without a result from the worker."""
    ended_at: float | None = None
    session: str | None = None
    """The cluster's session in which Ray was called; a restarted head begins another one."""
    session_lost_at: float | None = None
    """When another session was first seen."""
    node_id: str | None = None
    """Where Ray runs the attempt's first process."""
    killed_at: float | None = None
    """When what was left of it was first killed."""
    resumed_step: int | None = None
    """Optimizer steps that earlier attempts had done; 0 where it began anew."""
    reason: Reason | None = None
    """Why it ended."""
    evidence: str | None = None

    @property
    def submission_id(self) -> str:
        """The Ray job's id."""
        return f"caps-{self.job_id}-{self.number}"


@dataclass(frozen=True)
class Job:
    """One row of the queue; times in seconds since 1970."""

    id: str
    spec: AnySpec
    desired: Desired
    state: State
    attempt: int
    """Number of the current attempt; 0 before the first."""
    version: int
    """Grows with every change; the store's compare-and-set is on (attempt, version)."""
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    not_before: float | None = None
    reason: Reason | None = None
    evidence: str = ""
    waiting_reason: str = ""
    """Why a queued job is not running yet, in words."""
    errors: int = 0
    """Attempts that ended in an error of the training."""
    losses: int = 0
    """Attempts lost to the infrastructure since the last one that made progress."""
    experiment_id: str | None = None
    """MLflow's; empty while a run is being made, so that none is forgotten."""
    run_id: str | None = None
    run_closed: bool = False
    """Whether MLflow's run is known to carry the final status."""
    result: dict[str, Any] | None = None
    """The worker's `Result` of the last attempt that left one."""
    retry_through: int = 0
    """Of a search: failures of trials in attempts up to this one are void."""
    owner: str = LOCAL
    """Who submitted it."""
    current: Attempt | None = field(default=None, compare=False)
    """The current attempt's record."""

    @property
    def kind(self) -> Kind:
        """What the job runs."""
        return Kind.SEARCH if isinstance(self.spec, SearchSpec) else Kind.TRAIN

    @property
    def training(self) -> TrainSpec:
        """What is trained: of a search, what all its trials begin from."""
        return self.spec.base if isinstance(self.spec, SearchSpec) else self.spec

    @property
    def max_runtime_s(self) -> int | None:
        """The queue's deadline for an attempt; a search keeps its budget itself."""
        return None if isinstance(self.spec, SearchSpec) else self.spec.max_runtime_s

    @property
    def max_retries(self) -> int:
        """Attempts after an error; a search answers for its trials' errors itself."""
        return 0 if isinstance(self.spec, SearchSpec) else self.spec.max_retries


@dataclass(frozen=True)
class Event:
    """One line of a job's history, written in the same transaction as the change it tells."""

    id: int
    job_id: str
    attempt: int
    at: float
    type: str
    message: str
    data: dict[str, Any]
