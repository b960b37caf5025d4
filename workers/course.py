"""One training's course: restored, trained, kept. Jobs and trials of searches have it in common.

The start is the newest checkpoint of this or earlier attempts that verifies, else `init_from`.
Where several workers train together each runs this; only the first one tells and keeps, and it
chooses the checkpoint from which all go on.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import BaseModel

from capsmodel.callbacks import Callback
from capsmodel.checkpoint import (
    BadCheckpointError,
    CheckpointFolder,
    CheckpointInfo,
    load_checkpoint,
)
from capsmodel.datasets import Dataset
from capsmodel.metrics import StepMetrics
from capsmodel.training import Trainer, TrainingOutcome
from workers.artifacts import build_artifacts
from workers.attempt import (
    AttemptFolder,
    CheckpointRef,
    Kept,
    Outcome,
    Reason,
    Result,
    Resumed,
)
from workers.crash import crashing
from workers.failures import StorageDiffersError
from workers.reporter import BestStep, Reporter
from workers.specs import TrainSpec
from workers.stop import StopCause, StopFlag
from workers.tracking import Call

logger = logging.getLogger(__name__)


class Telemetry(Protocol):
    """Where a training tells what MLflow is to know."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metric values of a step; returns at once."""

    def submit(self, what: str, call: Call) -> None:
        """Have `call(client, run_id)` made in turn; `what` names it in messages."""


@dataclass(frozen=True)
class Setting:
    """What a training finds around it."""

    folder: AttemptFolder
    spec: TrainSpec
    device: torch.device
    telemetry: Telemetry
    stop: StopFlag
    init_checkpoint: str | None = None
    """Checkpoint that `spec.init_from` stands for, below CAPS_STORAGE."""
    rank: int = 0
    """Number among the workers of this training."""

    @property
    def leads(self) -> bool:
        """Whether this worker tells and keeps."""
        return self.rank == 0


class Start(BaseModel):
    """The checkpoint from which a training goes on, as its first worker tells the others."""

    file: str
    """Below CAPS_STORAGE."""
    sha256: str


def most_accurate_step(trainer: Trainer) -> int | None:
    """The best by validation accuracy, of equal ones by the lower loss."""
    return None if trainer.best is None else trainer.best.step


class Course:
    """A training that is ready to go, from wherever it was left.

    Attributes:
        setting: What it finds around it.
        checkpoints: The attempt's.
        trainer: The training.
        reporter: What it tells; None in workers other than the first.
    """

    def __init__(
        self,
        setting: Setting,
        dataset: Dataset,
        before: Sequence[Callback] = (),
        after: Sequence[Callback] = (),
        best_step: BestStep = most_accurate_step,
    ) -> None:
        """Build model and data and restore.

        Args:
            setting: What the training finds around it.
            dataset: The data.
            before: Called before the reporter, which saves the checkpoint: what they write down
                about an epoch is there when a resumed training knows the epoch.
            after: Called after it: the epoch is safe then.
            best_step: Which weights are kept as the best.
        """
        self.setting = setting
        self.checkpoints = own_checkpoints(setting.folder)
        self._best_step = best_step
        spec = setting.spec
        self.reporter: Reporter | None = None
        watching: list[Callback] = [Leaving(setting.stop)]
        if setting.leads:
            artifacts = build_artifacts(spec.artifacts)
            self.reporter = Reporter(
                setting.folder, spec, setting.telemetry, self.checkpoints, artifacts, best_step
            )
            watching.append(self.reporter)
        self.trainer = Trainer(
            spec.training, dataset, device=setting.device, callbacks=[*before, *watching, *after]
        )
        self._begin()

    def run(self) -> TrainingOutcome:
        """Train to the end, or until asked to leave."""
        return self.trainer.fit()

    def left(self) -> Result:
        """The last word of a training that was asked to leave: its checkpoint is saved."""
        trainer = self.trainer
        kept: dict[Kept, CheckpointInfo] = {}
        with crashing("worker.checkpoint"):
            kept["last"] = self.checkpoints.save(trainer.state_dict(), trainer.epoch, trainer.step)
        best = self.checkpoints.whole_best()
        if best is not None:
            kept["best"] = best
        outcomes: dict[StopCause | None, tuple[Outcome, Reason]] = {
            "pause": ("paused", Reason.PAUSED),
            "cancel": ("cancelled", Reason.CANCELLED),
            "deadline": ("failed", Reason.DEADLINE),
        }
        cause = self.setting.stop.cause()
        outcome, reason = outcomes.get(cause, ("interrupted", Reason.INTERRUPTED))
        return Result(
            outcome=outcome,
            reason=reason,
            evidence=f"stopped at step {trainer.step} of {trainer.total_steps}; checkpoint saved",
            checkpoints=self.references(kept),
            step=trainer.step,
        )

    def references(self, kept: dict[Kept, CheckpointInfo]) -> dict[Kept, CheckpointRef]:
        """Checkpoints as a result names them."""
        return {
            name: CheckpointRef(
                path=self.setting.folder.relative(info.path),
                sha256=info.sha256,
                epoch=info.epoch,
                step=info.step,
            )
            for name, info in kept.items()
        }

    def _begin(self) -> None:
        """Go on from a checkpoint, else begin with the weights of `init_from`, if there are any."""
        skipped: list[str] = []
        found = self._newest(skipped) if self.setting.leads else None
        start = None if found is None else self._start(*found).model_dump_json()
        told = self.trainer.ranks.first_of(start)
        if told is not None:
            self._restore(Start.model_validate_json(told))
        elif self.setting.init_checkpoint is not None:
            origin = self.setting.init_checkpoint
            self.trainer.load_weights(load_checkpoint(self.setting.folder.storage / origin))
            logger.info("initial weights from %s", origin)
        if found is not None:
            skipped += self._carry_best(*found)
        for problem in skipped:
            logger.warning("a checkpoint is skipped: %s", problem)
        if self.reporter is not None and (found or skipped):
            attempt = None if found is None else int(found[0].path.name)
            epoch, step = self.trainer.epoch, self.trainer.step
            self.reporter.resumed(Resumed(attempt=attempt, epoch=epoch, step=step, skipped=skipped))

    def _newest(self, skipped: list[str]) -> tuple[AttemptFolder, CheckpointInfo] | None:
        """The newest checkpoint of this and earlier attempts that verifies, and whose it is."""
        folder = self.setting.folder
        for attempt in [folder, *folder.earlier()]:
            newest, problems = own_checkpoints(attempt).newest_verified()
            skipped += [self._told(problem) for problem in problems]
            if newest is not None:
                return attempt, newest
        return None

    def _start(self, attempt: AttemptFolder, newest: CheckpointInfo) -> Start:
        return Start(file=attempt.relative(newest.path), sha256=newest.sha256)

    def _restore(self, start: Start) -> None:
        """Load what the first worker has chosen."""
        try:
            state = load_checkpoint(self.setting.folder.storage / start.file, start.sha256)
        except BadCheckpointError as error:
            if self.setting.leads:
                raise
            raise StorageDiffersError(f"the first worker found it whole: {error}") from error
        self.trainer.load_state_dict(state)
        logger.info("resumed from %s, step %d", start.file, self.trainer.step)

    def _carry_best(self, attempt: AttemptFolder, newest: CheckpointInfo) -> list[str]:
        """Take the best checkpoint over: the newest, if a crash came before it was marked.

        Returns:
            What is wrong with the best one, if it can't be taken over; the next best epoch's will
            be the best then, or the last weights.
        """
        source = own_checkpoints(attempt)
        marked, problems = None, []
        try:
            marked = source.best()
        except BadCheckpointError as error:
            problems.append(self._told(error))
        unmarked = marked is None or marked.step != newest.step
        if self._best_step(self.trainer) == newest.step and unmarked:
            self.checkpoints.adopt_best(newest)
        elif marked is not None and source.path != self.checkpoints.path:
            self.checkpoints.adopt_best(marked)
        return problems

    def _told(self, problem: object) -> str:
        """A problem as the control plane is to read it: with paths below CAPS_STORAGE."""
        return str(problem).replace(f"{self.setting.folder.storage}/", "")


def own_checkpoints(folder: AttemptFolder) -> CheckpointFolder:
    """An attempt's checkpoints, of which those of another job are none."""
    return CheckpointFolder(folder.checkpoints, owner=folder.owner)


class Leaving(Callback):
    """Ends the training when it is asked to leave."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop

    def on_start(self, trainer: Trainer) -> None:
        """Perhaps it was asked to before it began."""
        if self._stop.cause():
            trainer.request_stop()

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Leave after this step, if asked to."""
        if self._stop.cause():
            trainer.request_stop()


def wait_for_all() -> None:
    """Wait until every worker of this training has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def prepare_device(cpus: int, gpus: float) -> torch.device:
    """The device that was reserved, with as many threads as CPU cores were.

    CAPS_DEVICE names another one: `cpu` lets a cluster try its reservations of GPUs without any.

    Raises:
        RuntimeError: A GPU was reserved, and PyTorch finds none.
    """
    torch.set_num_threads(cpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    logger.info("reserved: %d CPUs, %g GPUs (CUDA_VISIBLE_DEVICES=%s)", cpus, gpus, visible)
    if forced := os.environ.get("CAPS_DEVICE"):
        return torch.device(forced)
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"resources.gpus_per_worker is {gpus:g}, but PyTorch finds no GPU on this node"
        )
    if gpus < 1:  # whoever shares the GPU must not find its memory taken
        torch.cuda.set_per_process_memory_fraction(gpus)
    return torch.device("cuda")
