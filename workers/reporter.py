"""What a training tells while it runs: progress, metrics, checkpoints and pictures."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from capsmodel.callbacks import Callback
from capsmodel.checkpoint import CheckpointFolder, CheckpointInfo
from capsmodel.metrics import MEASURES, EpochMetrics, Evaluation, StepMetrics
from capsmodel.training import Split, Trainer
from workers import uploads
from workers.artifacts import Artifact, View
from workers.attempt import AttemptFolder, Progress, Resumed
from workers.crash import crashing
from workers.specs import TrainSpec

if TYPE_CHECKING:
    from workers.course import Telemetry

logger = logging.getLogger(__name__)

BestStep = Callable[[Trainer], int | None]
"""After which step the weights were the best up to now; None before the first epoch's end."""

TELL_EVERY_S = 1.0
MAX_PICTURED_IMAGES = 1000
"""Images of a part among which examples and failures for the pictures are looked for."""


class Reporter(Callback):
    """Hooked into the `Trainer`; writes the attempt's folder and hands MLflow's share on."""

    def __init__(
        self,
        folder: AttemptFolder,
        spec: TrainSpec,
        telemetry: "Telemetry",
        checkpoints: CheckpointFolder,
        artifacts: Sequence[Artifact],
        best_step: BestStep,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._telemetry = telemetry
        self._checkpoints = checkpoints
        self._artifacts = artifacts
        self._best_step = best_step
        self._progress = Progress()
        self._tell_at = 0.0
        self._checkpoint_at = 0.0

    def resumed(self, resumed: Resumed) -> None:
        """Where the training begins; told with the first word."""
        self._progress.resumed = resumed

    def on_start(self, trainer: Trainer) -> None:
        """The first word after model and data are ready."""
        self._checkpoint_at = time.monotonic() + self._spec.checkpoint_every_s
        self.phase("training", trainer)

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Tell how it goes, about once a second."""
        now = time.monotonic()
        if self._progress.first_step_at is None:
            self._progress.first_step_at = time.time()
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            self._tell_step(trainer, metrics)
        if now >= self._checkpoint_at:
            self._save(trainer)

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """Tell, then save: a resumed training that knows the epoch need not tell it again."""
        self._telemetry.log(epoch_metrics(metrics), metrics.step)
        info = self._save(trainer)
        if self._best_step(trainer) == metrics.step:
            self._checkpoints.mark_best(info)
        self._progress.train_accuracy = metrics.train.accuracy
        if metrics.validation:
            self._progress.val_accuracy = metrics.validation.accuracy
        self._write(trainer)
        logger.info("%s", _in_words(metrics, trainer))
        if metrics.epoch < self._spec.epochs:
            self.pictures(trainer, "validation" if metrics.validation else "train", metrics.epoch)

    def phase(self, name: Literal["training", "evaluating", "finishing"], trainer: Trainer) -> None:
        """Tell what is being done now."""
        self._progress.phase = name
        self._write(trainer)

    def pictures(self, trainer: Trainer, part: Split, epoch: int) -> list[Path]:
        """Make the pictures that are due and hand them on; a failing one stops nothing."""
        fitting = [artifact for artifact in self._artifacts if artifact.suits(trainer.model)]
        due = [artifact for artifact in fitting if part == "test" or artifact.due(epoch)]
        if not due:
            return []
        examples = trainer.examples(part, MAX_PICTURED_IMAGES)
        view, made = View(trainer.model, examples, part, epoch), []
        for artifact in due:
            try:
                picture = artifact.make(view)
            except Exception:
                logger.exception("%s was not made", type(artifact).__name__)
                continue
            path = self._folder.artifacts / f"{artifact.name}-{part}-epoch-{epoch:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            key = f"{artifact.name}/{part}"
            self._telemetry.submit(path.name, uploads.log_picture(path, key, epoch))
            made.append(path)
        return made

    def _save(self, trainer: Trainer) -> CheckpointInfo:
        self._checkpoint_at = time.monotonic() + self._spec.checkpoint_every_s
        state = trainer.state_dict()
        with crashing("worker.checkpoint"):
            return self._checkpoints.save(state, trainer.epoch, trainer.step)

    def _tell_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        values = {f"train/{name}": value for name, value in measures_of(metrics).items()}
        values["train/learning_rate"] = metrics.learning_rate
        values["train/gradient_norm"] = metrics.gradient_norm
        values["speed/images_per_s"] = metrics.images_per_s
        self._telemetry.log(values, metrics.step)
        progress = self._progress
        progress.train_loss = metrics.total_loss
        progress.train_accuracy = metrics.accuracy
        progress.images_per_s = metrics.images_per_s
        images_left = (trainer.total_steps - metrics.step) * self._spec.batch_size
        progress.eta_s = images_left / metrics.images_per_s if metrics.images_per_s else None
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        progress = self._progress
        progress.epoch, progress.epochs = trainer.epoch, self._spec.epochs
        progress.step, progress.steps = trainer.step, trainer.total_steps
        try:
            self._folder.write_progress(progress)
        except OSError:  # a full disk fails the next checkpoint; a heartbeat alone fails nothing
            logger.warning("the progress can't be written just now", exc_info=True)


def measures_of(metrics: Evaluation | StepMetrics) -> dict[str, float]:
    """Losses and accuracies by name, those that apply; waits for the device."""
    values = {name: getattr(metrics, name) for name in MEASURES}
    return {name: float(value) for name, value in values.items() if value is not None}


def epoch_metrics(metrics: EpochMetrics) -> dict[str, float]:
    """What an epoch measured, by the names that MLflow shows."""
    parts: dict[str, Evaluation | None] = {
        "train_epoch": metrics.train,
        "val": metrics.validation,
    }
    values = {
        f"{part}/{name}": value
        for part, evaluation in parts.items()
        if evaluation is not None
        for name, value in measures_of(evaluation).items()
    }
    return values | {"speed/epoch_images_per_s": metrics.images_per_s}


def _in_words(metrics: EpochMetrics, trainer: Trainer) -> str:
    text = (
        f"epoch {metrics.epoch}/{trainer.config.epochs}: train loss "
        f"{metrics.train.total_loss:.4f}, accuracy {metrics.train.accuracy:.4f}"
    )
    if metrics.validation:
        text += (
            f"; validation loss {metrics.validation.total_loss:.4f}, accuracy "
            f"{metrics.validation.accuracy:.4f}{' (best)' if metrics.is_best else ''}"
        )
    return f"{text}; {metrics.images_per_s:.0f} images/s"
