"""The attempt's folder: the only channel between control plane and worker.

    CAPS_STORAGE/jobs/<job>/<attempt>/
        attempt.json     control plane -> worker   `Attempt`, written before Ray is called
        stop             control plane -> worker   `cancel` or `pause`
        kill             control plane -> worker   whoever reads it ends at once, see `sentinel.py`
        processes/       worker -> control plane   a `ProcessRecord` for each of its processes
        progress.json    worker -> control plane   `Progress`; its mtime is the heartbeat
        log.txt          worker -> control plane   all that the worker prints
        metrics.jsonl    worker -> control plane   metric points, in order, before they are shipped;
                                                   likewise system-metrics.jsonl, the machine's load
        metrics.sent     worker -> control plane   how far they are; likewise system-metrics.sent
        checkpoints/     worker                    see `capsmodel.checkpoint`
        artifacts/       worker                    pictures, as they went to MLflow
        result.json      worker -> control plane   `Result`, the worker's last word
        leave            driver -> its workers     save a checkpoint and leave: the driver must go
        outcome-R.json   worker R -> driver        `Result`, where several workers train together

Only the current attempt's folder is read, so a stale attempt has nowhere to commit. Both sides
import this module; it stands on Pydantic alone.

Every document says of which schema version it is. Another version is refused, by both sides; fields
that the reader does not know are passed over.
"""

import os
import re
import secrets
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workers.crash import crashing
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
    NODE_LOST = "node-lost"
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
    Reason.NODE_LOST: "its node, or the cluster's head, went away; the job goes on elsewhere from "
    "its checkpoint",
    Reason.BUDGET: "raise budget.max_runtime_s, or lower trials",
    Reason.TRIALS_FAILED: "the trials' reasons tell why; retry-failed runs them again, and "
    "budget.max_failures says how many are tolerated",
}

GIVEN_UP_HINTS: dict[Reason, str] = {
    Reason.WORKER_LOST: "read the end of its log, and look at what ends processes on the node",
    Reason.NODE_LOST: "look at why the nodes go away; Ray's logs tell",
    Reason.INTERRUPTED: "look at what stops its node or its processes",
}
"""Of a job that was lost again and again: it does not go on."""


def hint_for(reason: Reason | None, *, failed: bool = False) -> str | None:
    """What may be done about it; `failed` if it has ended a job, not only an attempt."""
    if reason is None:
        return None
    return (failed and GIVEN_UP_HINTS.get(reason)) or HINTS.get(reason)


_RAY_SAYS: list[tuple[str, Reason]] = [
    # Ray's own monitor of memory. What the kernel's killer has ended looks like any other SIGKILL:
    # for that, too, Ray names it among the causes that there might be.
    (r"low on memory|due to memory pressure|\bOutOfMemoryError\b", Reason.OUT_OF_MEMORY),
    (r"node (has |was |is )?(already )?(died|dead|preempted|terminated)", Reason.NODE_LOST),
    (r"\bNodeDiedError\b|raylet died|\bRpcError\b|\bGCS\b", Reason.NODE_LOST),
    (r"connect to Ray cluster", Reason.NODE_LOST),
]


def reason_of_ray(message: str) -> Reason:
    """Which loss Ray's words on a process tell of: memory, a node or the head, else the process."""
    for pattern, reason in _RAY_SAYS:
        if re.search(pattern, message, re.IGNORECASE):
            return reason
    return Reason.WORKER_LOST


class VersionMismatchError(ValueError):
    """A document was written by another release, in a way that this one must not read."""

    def __init__(self, file: Path | str, what: str, found: object, expected: object) -> None:
        """Name the file, what of it differs, and both versions."""
        super().__init__(
            f"{file} has {what} {found}, expected {expected}: install the same release on the "
            "control plane and on every node"
        )
        self.file = Path(file)
        self.found = found
        self.expected = expected


@cache
def installed_release() -> str:
    """The release of this package that is installed here."""
    return version("capsnet-training-service")


class _Versioned(BaseModel):
    schema_version: int = SCHEMA_VERSION


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


class Resumed(BaseModel):
    """Where an attempt began: at a checkpoint, or at the start since none of them verifies."""

    attempt: int | None = None
    """Whose checkpoint was taken; None where all were skipped."""
    epoch: int = 0
    step: int = 0
    skipped: list[str] = []
    """Why newer checkpoints were passed over, the newest first."""


class ProcessRecord(BaseModel):
    """A process of an attempt, as it registers itself: whoever is registered holds the slot."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    host: str
    """See `process.host_id`: of one host are those that see each other's process ids."""
    pid: int
    created: float
    """See `liveness.created`: tells it from a later process with the same id."""
    role: str = "worker"
    """`worker`, or `driver` beside `rank-1`, `trial-3`, `trial-3-rank-1` or `show-3`."""


class Progress(_Document):
    """How far the worker is."""

    package_version: str = ""
    """The worker's release; `write_progress` fills it in."""
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
    resumed: Resumed | None = None
    """Known once the worker has looked for checkpoints; None where there were none."""
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
    def owner(self) -> str:
        """Whose attempts these are: a job's id, or `<search>/trials/<number>`."""
        return self.path.parent.relative_to(self.storage / "jobs").as_posix()

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
        number = int(self.path.name)
        numbers = sorted((n for n in _numbers(self.path.parent) if n < number), reverse=True)
        return [type(self)(self.storage, self.owner, n) for n in numbers]

    def superseded(self) -> bool:
        """Whether a later attempt of the job exists: then this one must stop."""
        return any(n > int(self.path.name) for n in _numbers(self.path.parent))

    def relative(self, path: Path) -> str:
        """`path` below the storage's root, as other nodes know it."""
        return path.relative_to(self.storage).as_posix()

    def write_attempt(self, attempt: AnyAttempt) -> None:
        """Make the folder and say what is to be done."""
        with crashing("folder.attempt"):
            self._write("attempt.json", attempt)

    def read_attempt(self) -> AnyAttempt:
        """What is to be done.

        Raises:
            FileNotFoundError: There is none.
            VersionMismatchError: It has another schema version.
            pydantic.ValidationError: It is damaged.
        """
        file = self.path / "attempt.json"
        content = file.read_bytes()
        _check_schema(file, content)
        return _ANY_ATTEMPT.validate_json(content, context=TRUSTED)

    def accept_attempt(self) -> AnyAttempt:
        """The same for a worker, which does what a control plane of its own release asks for.

        Raises:
            VersionMismatchError: The control plane is of another release than this node.
        """
        attempt = self.read_attempt()
        if attempt.package_version != installed_release():
            raise VersionMismatchError(
                self.path / "attempt.json",
                "package_version",
                attempt.package_version,
                installed_release(),
            )
        return attempt

    def register(self, record: ProcessRecord) -> None:
        """Say that a process works for this attempt. It stays written down when it has ended."""
        with crashing("worker.register"):
            self._write(f"processes/{record.host}-{record.pid}.json", record)

    def processes(self) -> list[ProcessRecord]:
        """All that ever worked for this attempt, dead or alive; one that is damaged raises."""
        found = sorted((self.path / "processes").glob("*.json"))
        return [ProcessRecord.model_validate_json(file.read_bytes()) for file in found]

    def request_kill(self) -> None:
        """Have every process of this attempt end at once, without a checkpoint."""
        with crashing("folder.kill"):
            write_atomic(self.path / "kill", b"")

    def kill_requested(self) -> bool:
        """Whether its processes are to end at once. Raises OSError where nobody can know."""
        return _modified(self.path / "kill") is not None

    def request_stop(self, kind: StopKind) -> None:
        """Ask the worker to leave a checkpoint and go."""
        with crashing("folder.stop"):
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
        with crashing("worker.outcome"):
            self._write(self.outcome_file(rank).name, result)

    def read_outcome(self, rank: int) -> Result | None:
        """None while that worker has not ended by itself."""
        return self._read(self.outcome_file(rank).name, Result)

    def write_progress(self, progress: Progress) -> None:
        """Tell how far the worker is; also its heartbeat."""
        told = progress.model_copy(update={"package_version": installed_release()})
        with crashing("worker.progress"):
            self._write("progress.json", told)

    def read_progress(self) -> Progress | None:
        """None before the worker's first word.

        Raises:
            VersionMismatchError: It has another schema version.
            pydantic.ValidationError: It is damaged.
        """
        return self._read("progress.json", Progress)

    def heartbeat(self) -> float | None:
        """When the worker last wrote its progress, in seconds since 1970."""
        return _modified(self.path / "progress.json")

    def write_result(self, result: Result) -> None:
        """The worker's last act."""
        with crashing("worker.result"):
            self._write("result.json", result)

    def read_result(self) -> Result | None:
        """None while the worker has not ended by itself.

        Raises:
            VersionMismatchError: It has another schema version.
            pydantic.ValidationError: It is damaged.
        """
        return self._read("result.json", Result)

    def _write(self, name: str, document: BaseModel) -> None:
        write_atomic(self.path / name, document.model_dump_json(indent=2).encode())

    def _read(self, name: str, kind: type[Document]) -> Document | None:
        file = self.path / name
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        _check_schema(file, content)
        return kind.model_validate_json(content)


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


def _check_schema(file: Path, content: bytes) -> None:
    """Whether this release may read a document; of what is damaged the reader tells itself."""
    try:
        found = _Versioned.model_validate_json(content).schema_version
    except ValidationError:
        return
    if found != SCHEMA_VERSION:
        raise VersionMismatchError(file, "schema_version", found, SCHEMA_VERSION)


def _numbers(job: Path) -> list[int]:
    return [int(p.name) for p in job.iterdir() if p.name.isdecimal()] if job.exists() else []


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
