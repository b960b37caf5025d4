"""The attempt's folder: the only channel between control plane and worker.

    CAPS_STORAGE/jobs/<job>/<attempt>/
        attempt.json     control plane -> worker   `Attempt`, written before Ray is called
        stop             control plane -> worker   `cancel` or `pause`
        progress.json    worker -> control plane   `Progress`; its mtime is the heartbeat
        log.txt          worker -> control plane   all that the worker prints
        metrics.jsonl    worker                    metric points, in order, before they are shipped
        checkpoints/     worker                    see `capsmodel.checkpoint`
        artifacts/       worker                    pictures, as they went to MLflow
        result.json      worker -> control plane   `Result`, the worker's last word
        leave            driver -> its workers     save a checkpoint and leave: the driver must go
        outcome-R.json   worker R -> driver        `Result`, where several workers train together

Only the current attempt's folder is read, so a stale attempt has nowhere to commit. Both sides
import this module; it stands on Pydantic alone.
"""

import os
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from workers.search_specs import TRUSTED, SearchSpec
from workers.specs import SCHEMA_VERSION, TrainSpec

StopKind = Literal["cancel", "pause"]
Outcome = Literal["succeeded", "failed", "cancelled", "paused", "interrupted"]
Kept = Literal["best", "last"]
Document = TypeVar("Document", bound=BaseModel)


class Reason(StrEnum):
    """Why a job ended, or an attempt did: a closed set."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DEADLINE = "deadline"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out-of-memory"
    DATA_MISSING = "data-missing"
    BAD_CHECKPOINT = "bad-checkpoint"
    VERSION_MISMATCH = "version-mismatch"
    ERROR = "error"
    WORKER_LOST = "worker-lost"
    INTERRUPTED = "interrupted"
    BUDGET = "budget"
    TRIALS_FAILED = "trials-failed"


HINTS: dict[Reason, str] = {
    Reason.DEADLINE: "raise max_runtime_s, or lower epochs",
    Reason.DIVERGED: "lower optimizer.learning_rate or add schedule.warmup_steps",
    Reason.OUT_OF_MEMORY: "lower batch_size, or ask for a worker with more memory",
    Reason.DATA_MISSING: "put the data set's files below CAPS_DATA_DIR on every node, or let "
    "its nodes reach a mirror (CAPS_DATA_MIRROR)",
    Reason.BAD_CHECKPOINT: "choose another checkpoint in init_from",
    Reason.VERSION_MISMATCH: "install the same release on the control plane and on every node",
    Reason.ERROR: "the traceback stands in the job's log",
    Reason.INTERRUPTED: "its node was stopped; the job goes on from its checkpoint",
    Reason.WORKER_LOST: "the worker's process died without a word; look at the node",
    Reason.BUDGET: "raise budget.max_runtime_s, or lower trials",
    Reason.TRIALS_FAILED: "the trials' reasons tell why; retry-failed runs them again, and "
    "budget.max_failures says how many are tolerated",
}


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")

    schema_version: int = SCHEMA_VERSION


class Attempt(_Document):
    """What the worker of a training job is to do."""

    kind: Literal["train"] = "train"
    package_version: str
    job: str
    attempt: int
    spec: TrainSpec
    tracking_uri: str
    run_id: str
    init_checkpoint: str | None = None
    """Checkpoint that `spec.init_from` stands for, below CAPS_STORAGE."""


class SearchAttempt(_Document):
    """What the driver of a search is to do."""

    kind: Literal["search"] = "search"
    package_version: str
    job: str
    attempt: int
    spec: SearchSpec
    tracking_uri: str
    experiment_id: str
    run_id: str
    """MLflow's parent run."""
    init_checkpoint: str | None = None
    """Checkpoint that `spec.base.init_from` stands for, below CAPS_STORAGE."""
    retry_through: int = 0
    """Failures in attempts up to this one are void: their trials run again."""


AnyAttempt = Attempt | SearchAttempt


_ANY_ATTEMPT: TypeAdapter[AnyAttempt] = TypeAdapter(
    Annotated[Attempt | SearchAttempt, Field(discriminator="kind")]
)


class TrialCounts(BaseModel):
    """How many trials of a search are where."""

    total: int = 0
    """That the search will run if nothing ends it early."""
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    pruned: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """Trials that run no more."""
        return self.succeeded + self.pruned + self.failed + self.cancelled


class Progress(_Document):
    """How far the worker is."""

    phase: Literal["starting", "training", "searching", "evaluating", "finishing"] = "starting"
    epoch: int = 0
    """Epochs completed."""
    epochs: int = 0
    step: int = 0
    """Optimizer steps done."""
    steps: int = 0
    images_per_s: float | None = None
    eta_s: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_accuracy: float | None = None
    first_step_at: float | None = None
    """When this attempt's first training step ended, in seconds since 1970."""
    trials: TrialCounts | None = None
    """Of a search."""
    best_score: float | None = None
    """Of a search: the best configuration's mean."""


class CheckpointRef(BaseModel):
    """A checkpoint in the storage."""

    path: str
    """Below CAPS_STORAGE."""
    sha256: str
    epoch: int
    step: int


class Result(_Document):
    """The worker's last word."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a metric may be NaN, never missing

    outcome: Outcome
    """`interrupted`: a signal ended the attempt after its checkpoint was saved."""
    reason: Reason
    evidence: str = ""
    """The line that tells: an exception's message, a metric's value."""
    metrics: dict[str, float] = {}
    checkpoints: dict[Kept, CheckpointRef] = {}
    artifacts: list[str] = []
    """Files below CAPS_STORAGE."""
    step: int = 0
    tracking: str = "complete"
    """`complete`, or what could not be written to MLflow."""


class AttemptFolder:
    """Reads and writes one attempt's folder; every write is atomic."""

    def __init__(self, storage: Path, job: str, attempt: int) -> None:
        self.storage = storage
        self.path = storage / "jobs" / job / str(attempt)

    @property
    def log(self) -> Path:
        """All that the worker prints."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metric points, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of `capsmodel.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Pictures and reports."""
        return self.path / "artifacts"

    def earlier(self) -> list[Self]:
        """The folders of the job's earlier attempts, the newest first."""
        place, number = self.path.parent, int(self.path.name)
        job = place.relative_to(self.storage / "jobs").as_posix()
        numbers = sorted((n for n in _numbers(place) if n < number), reverse=True)
        return [type(self)(self.storage, job, n) for n in numbers]

    def superseded(self) -> bool:
        """Whether a later attempt of the job exists: then this one must stop."""
        return any(n > int(self.path.name) for n in _numbers(self.path.parent))

    def relative(self, path: Path) -> str:
        """`path` below the storage's root, as other nodes know it."""
        return path.relative_to(self.storage).as_posix()

    def write_attempt(self, attempt: AnyAttempt) -> None:
        """Make the folder and say what is to be done."""
        self._write("attempt.json", attempt)

    def read_attempt(self) -> AnyAttempt:
        """Raises FileNotFoundError, or pydantic.ValidationError where versions differ."""
        content = (self.path / "attempt.json").read_bytes()
        return _ANY_ATTEMPT.validate_json(content, context=TRUSTED)

    def request_stop(self, kind: StopKind) -> None:
        """Ask the worker to leave a checkpoint and go."""
        write_atomic(self.path / "stop", kind.encode())

    def stop_requested(self) -> StopKind | None:
        """What the control plane asks for, if anything."""
        try:
            text = (self.path / "stop").read_text()
        except FileNotFoundError:
            return None
        return "pause" if text == "pause" else "cancel"

    def request_leave(self) -> None:
        """Have the workers of this driver leave a checkpoint and go; the job will go on later."""
        write_atomic(self.path / "leave", b"")

    def leave_requested(self) -> bool:
        """Whether the driver must go."""
        return (self.path / "leave").exists()

    def outcome_file(self, rank: int) -> Path:
        """Where one of several workers leaves what became of it."""
        return self.path / f"outcome-{rank}.json"

    def write_outcome(self, rank: int, result: Result) -> None:
        """What one of several workers leaves for their driver."""
        self._write(self.outcome_file(rank).name, result)

    def read_outcome(self, rank: int) -> Result | None:
        """None while that worker has not ended by itself."""
        return self._read(self.outcome_file(rank).name, Result)

    def write_progress(self, progress: Progress) -> None:
        """Tell how far the worker is; also its heartbeat."""
        self._write("progress.json", progress)

    def read_progress(self) -> Progress | None:
        """None before the worker's first word."""
        return self._read("progress.json", Progress)

    def heartbeat(self) -> float | None:
        """When the worker last wrote its progress, in seconds since 1970."""
        return _modified(self.path / "progress.json")

    def write_result(self, result: Result) -> None:
        """The worker's last act."""
        self._write("result.json", result)

    def read_result(self) -> Result | None:
        """None while the worker has not ended by itself."""
        return self._read("result.json", Result)

    def result_written_at(self) -> float | None:
        """When the worker ended by itself, in seconds since 1970."""
        return _modified(self.path / "result.json")

    def _write(self, name: str, document: BaseModel) -> None:
        write_atomic(self.path / name, document.model_dump_json(indent=2).encode())

    def _read(self, name: str, kind: type[Document]) -> Document | None:
        try:
            return kind.model_validate_json((self.path / name).read_bytes())
        except FileNotFoundError:
            return None


def write_atomic(path: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _numbers(job: Path) -> list[int]:
    return [int(p.name) for p in job.iterdir() if p.name.isdecimal()] if job.exists() else []


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
