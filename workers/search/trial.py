"""One trial: the course of a training job, without the test set, reported epoch by epoch.

All that a trial leaves is in its folder; MLflow hears of it from the search's driver.

    CAPS_STORAGE/jobs/<search>/trials/<number>/<attempt>/
        reports.jsonl    what each epoch measured
        result.json      how the trial ended; missing where the scheduler stopped it
        and what every attempt's folder holds
"""

import logging
import shutil
import time
import traceback
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from capsmodel.callbacks import Callback
from capsmodel.checkpoint import CheckpointInfo
from capsmodel.config import DatasetConfig
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.metrics import EpochMetrics
from capsmodel.training import Trainer, TrainingOutcome
from workers.attempt import AttemptFolder, Kept, Reason, Result, SearchAttempt
from workers.course import Course, Setting, own_checkpoints, prepare_device
from workers.failures import failed
from workers.reporter import epoch_metrics
from workers.search.book import finite
from workers.search.trainable import EPOCH, Tell, TrialOrder, WorkersLostError
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec
from workers.spool import Spool
from workers.stop import StopFlag
from workers.tracking import Call
from workers.trials import Report, all_reports, reports_file, trial_folder

logger = logging.getLogger(__name__)


def perform(order: TrialOrder, storage: Path, tell: Tell) -> None:
    """Run a trial; an error becomes its result, and the process stays good for the next one."""
    folder = trial_folder(storage, order.search, order.number, order.attempt)
    search = AttemptFolder(storage, order.search, order.attempt)
    try:
        attempt = search.accept_attempt()
        assert isinstance(attempt, SearchAttempt)
        spec = trial_spec(attempt, order)
        stop = StopFlag(search, folder, seconds=spec.max_runtime_s)
        if spec.resources.workers > 1:
            from workers.search.group import train_group

            result, last = train_group(order, folder, spec, tell)
        else:
            device = prepare_device(spec.resources.cpus_per_worker, spec.resources.gpus_per_worker)
            setting = Setting(
                folder, spec, device, SpooledTelemetry(folder), stop, attempt.init_checkpoint
            )
            diary = Diary(folder, order.number, attempt.spec)
            result, last = train_alone(setting, diary, tell)
    except SystemExit:  # how Tune ends a trial at a report
        logger.info("ended by the search's scheduler")
        raise
    except WorkersLostError:  # Tune starts the trial again, as it does when this process dies
        raise
    except Exception as error:
        traceback.print_exc()
        folder.write_result(failed(error, f"{type(error).__name__}: {error}"))
        return
    folder.write_result(result)
    if result.outcome == "succeeded":  # from here on nobody goes on from another checkpoint
        own_checkpoints(folder).keep(best=True, last=False)
        for earlier in folder.earlier():
            shutil.rmtree(earlier.checkpoints, ignore_errors=True)
    logger.info("%s: %s %s", result.outcome, result.reason, result.evidence)
    if last is not None:
        tell(told(last) | {"done": True})


def train_alone(setting: Setting, diary: "Diary", tell: Tell) -> tuple[Result, Report | None]:
    """Train in this process, or as the first worker of several.

    Args:
        setting: What the training finds around it.
        diary: The trial's; closed at the end.
        tell: Hears of every epoch.

    Returns:
        The result, and the last epoch's report, which is still to be told.
    """
    voice = Voice(diary, tell)
    try:
        data = dataset_on(setting.device, setting.spec.dataset)
        course = Course(setting, data, [diary], [voice], best_step=diary.best_step)
        voice.tell_again(course.trainer)
        outcome = course.run()
    finally:
        diary.close()
    if outcome.stopped == "requested":
        return course.left(), None
    return _finished(course, outcome), voice.untold


def _finished(course: Course, outcome: TrainingOutcome) -> Result:
    """The best weights stay; how good they are was reported."""
    best = course.checkpoints.whole_best()
    kept: dict[Kept, CheckpointInfo] = {} if best is None else {"best": best}
    return Result(
        outcome="succeeded",
        reason=Reason.COMPLETED,
        evidence=f"{outcome.epoch} epochs ({outcome.stopped})",
        checkpoints=course.references(kept),
        step=outcome.step,
    )


def trial_spec(attempt: SearchAttempt, order: TrialOrder) -> TrainSpec:
    """What the trial trains, without pictures: the search makes those of its best trials."""
    spec = attempt.spec.variant(order.values, order.seed)
    return spec.model_copy(update={"artifacts": ()})


@lru_cache(maxsize=2)
def _loaded(document: str, device: torch.device) -> Dataset:
    config = TrainSpec.model_validate_json(f'{{"dataset": {document}}}').dataset
    dataset = load_dataset(config)
    return replace(dataset, train_images=dataset.train_images.to(device))


def dataset_on(device: torch.device, config: DatasetConfig) -> Dataset:
    """The data, its training images on the device; loaded once for all trials of the process."""
    return _loaded(config.model_dump_json(), device)


class SpooledTelemetry:
    """Metrics go to the trial's folder, from which the driver sends them."""

    def __init__(self, folder: AttemptFolder) -> None:
        self._spool = Spool(folder.metrics, [earlier.metrics for earlier in folder.earlier()])

    def log(self, values: dict[str, float], step: int) -> None:
        """Write them down."""
        self._spool.append(values, step)

    def submit(self, what: str, call: Call) -> None:
        """Nothing else is told while a trial runs."""

    def close(self) -> None:
        """Close the file."""
        self._spool.close()


class Diary(Callback):
    """Writes down what every epoch measured, before the checkpoint that knows the epoch."""

    def __init__(self, folder: AttemptFolder, number: int, search: SearchSpec) -> None:
        """Open a trial's.

        Args:
            folder: The trial's, in this attempt.
            number: The trial's.
            search: It says which epoch is the best.
        """
        self._number = number
        self._search = search
        self._told = {report.epoch: report for report in all_reports(folder)}
        folder.path.mkdir(parents=True, exist_ok=True)
        self._file = reports_file(folder).open("a", buffering=1)

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """Write a line, unless the epoch was written down before it was lost."""
        if metrics.epoch in self._told:
            return
        report = Report(
            number=self._number,
            epoch=metrics.epoch,
            step=metrics.step,
            at=time.time(),
            metrics=finite(epoch_metrics(metrics)),
        )
        self._file.write("\n" + report.model_dump_json())
        self._told[metrics.epoch] = report

    def report(self, epoch: int) -> Report | None:
        """What was written down of an epoch."""
        return self._told.get(epoch)

    def best_step(self, trainer: Trainer) -> int | None:
        """Where the search's metric was best: the epoch of the trial's score."""
        best: tuple[float, int] | None = None
        for epoch in range(1, trainer.epoch + 1):
            report = self._told.get(epoch)
            score = None if report is None else report.metrics.get(self._search.metric)
            if report is None or score is None:
                continue
            if best is None or self._search.beats(score, best[0]):
                best = (score, report.step)
        return None if best is None else best[1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Voice(Callback):
    """Tells Tune of each epoch once its checkpoint is saved."""

    def __init__(self, diary: Diary, tell: Tell) -> None:
        self._diary = diary
        self._tell = tell
        self.untold: Report | None = None
        """The report of the last epoch: told when the trial's result is written."""

    def tell_again(self, trainer: Trainer) -> None:
        """Tell what was told before the trial was cut off: the scheduler may be a new one."""
        for epoch in range(1, trainer.epoch + 1):
            self._speak(trainer, epoch, last=_is_over(trainer) and epoch == trainer.epoch)

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """Tell; where the scheduler ends the trial, this does not return."""
        self._speak(trainer, metrics.epoch, last=_is_over(trainer))

    def _speak(self, trainer: Trainer, epoch: int, last: bool) -> None:
        report = self._diary.report(epoch)
        if report is None:
            return
        if last:
            self.untold = report
        else:
            self._tell(told(report))


def _is_over(trainer: Trainer) -> bool:
    """Whether the training ends by itself after the epoch that was just counted."""
    early = trainer.config.early_stopping
    if early is not None and trainer.stale_epochs >= early.patience:
        return True
    return trainer.epoch >= trainer.config.epochs


def told(report: Report) -> dict[str, Any]:
    """A report as Tune takes it: without what is not finite, which would spoil its rungs."""
    values = {name: value for name, value in report.metrics.items() if value is not None}
    return {**values, EPOCH: report.epoch, "report": report.model_dump_json()}
