"""One training job: the function that every attempt runs, in a driver of its own.

Data come from CAPS_DATA_DIR, the start from the newest checkpoint of earlier attempts (or from
`init_from`), and what is learned goes to the attempt's folder and to MLflow.
"""

import shutil
from dataclasses import dataclass

from capsmodel.checkpoint import CheckpointInfo, load_checkpoint, read_info
from capsmodel.datasets import load_dataset
from capsmodel.metrics import Evaluation
from capsmodel.training import TrainingOutcome
from workers import uploads
from workers.attempt import Attempt, AttemptFolder, Kept, Reason, Result
from workers.course import Course, Setting, Telemetry, prepare_device, wait_for_all
from workers.reporter import measures_of
from workers.spool import Spool
from workers.stop import StopFlag
from workers.tracking import Call, Tracker, note_tracking

PATIENCE_DONE_S = 120.0
"""How long a finished training waits for MLflow to take what is left."""
PATIENCE_STOPPED_S = 3.0
"""How long a cancelled or failed one does: its slot is wanted."""


def train(folder: AttemptFolder, attempt: Attempt, stop: StopFlag) -> Result:
    """Train, evaluate and report, as `attempt.spec` says; resumes earlier attempts' work."""
    resources = attempt.spec.resources
    if resources.workers > 1:
        from workers.together import train_together

        return train_together(folder, attempt, stop)
    return lead(folder, attempt, stop)


def lead(folder: AttemptFolder, attempt: Attempt, stop: StopFlag) -> Result:
    """The whole of it in the only worker, or in the first of several."""
    spool = Spool(folder.metrics, [earlier.metrics for earlier in folder.earlier()])
    tracker = Tracker(attempt.tracking_uri, attempt.run_id, spool)
    tracker.submit("start of the run", uploads.start(attempt))
    tracker.start()
    try:
        result = _train(folder, attempt, stop, tracker)
    except BaseException as error:
        if not folder.superseded():  # the run belongs to the later attempt
            tracker.submit("end of the run", uploads.end("FAILED"))
        note_tracking(error, tracker.finish(PATIENCE_STOPPED_S))
        raise
    done = result.outcome == "succeeded"
    patience, hurry = (PATIENCE_DONE_S, stop.cause) if done else (PATIENCE_STOPPED_S, never)
    status = {"succeeded": "FINISHED", "cancelled": "KILLED", "failed": "FAILED"}
    if result.outcome in status:
        tracker.submit("end of the run", uploads.end(status[result.outcome]))
    return result.model_copy(update={"tracking": tracker.finish(patience, hurry)})


def follow(folder: AttemptFolder, attempt: Attempt, stop: StopFlag, rank: int) -> None:
    """The part of a worker that is not the first: it computes, and tells nothing."""
    course = _course(folder, attempt, stop, Silence(), rank)
    outcome = course.run()
    if outcome.stopped != "requested":
        examine(course)


class Silence:
    """The telemetry of workers that tell nothing."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell nothing."""

    def submit(self, what: str, call: Call) -> None:
        """Tell nothing."""


def never() -> None:
    """Nothing hurries an attempt that was stopped: its patience is short."""


def _train(folder: AttemptFolder, attempt: Attempt, stop: StopFlag, tracker: Tracker) -> Result:
    course = _course(folder, attempt, stop, tracker, rank=0)
    data = course.trainer.dataset
    tracker.submit("data set", uploads.log_dataset(attempt.spec.dataset.type, data))
    outcome = course.run()
    if outcome.stopped == "requested":
        return course.left()
    return _finish(course, outcome, tracker)


def _course(
    folder: AttemptFolder, attempt: Attempt, stop: StopFlag, telemetry: Telemetry, rank: int
) -> Course:
    spec, resources = attempt.spec, attempt.spec.resources
    device = prepare_device(resources.cpus_per_worker, resources.gpus_per_worker)
    setting = Setting(
        folder=folder,
        spec=spec,
        device=device,
        telemetry=telemetry,
        stop=stop,
        init_checkpoint=attempt.init_checkpoint,
        rank=rank,
    )
    return Course(setting, load_dataset(spec.dataset))


@dataclass(frozen=True)
class Examination:
    """What the test set said, and of which weights."""

    last: Evaluation
    best: Evaluation
    best_epoch: int


def examine(course: Course) -> Examination:
    """Read the test set, once, for last and best weights; the model is left with the best.

    All workers of a training do so together.
    """
    trainer, checkpoints = course.trainer, course.checkpoints
    last_test = trainer.evaluate("test")
    if course.setting.leads:
        last = checkpoints.save(trainer.state_dict(), trainer.epoch, trainer.step)
        if checkpoints.whole_best() is None:
            checkpoints.mark_best(last)
    wait_for_all()
    best = checkpoints.best()
    if best is None or best.step == trainer.step:
        return Examination(last_test, last_test, trainer.epoch)
    trainer.load_weights(load_checkpoint(best.path, best.sha256))
    return Examination(last_test, trainer.evaluate("test"), best.epoch)


def _finish(course: Course, outcome: TrainingOutcome, tracker: Tracker) -> Result:
    """Examine; make and send what is to stay."""
    assert course.reporter is not None
    folder, spec, trainer = course.setting.folder, course.setting.spec, course.trainer
    course.reporter.phase("evaluating", trainer)
    test = examine(course)
    facts = {f"data/{name}": value for name, value in trainer.dataset.facts.items()}
    metrics = {**_named("test", test.best), **_named("test_last", test.last), **facts}
    tracker.log(metrics, outcome.step)
    course.reporter.phase("finishing", trainer)
    sheets = course.reporter.pictures(trainer, "test", outcome.epoch)
    if outcome.best is not None and spec.dataset.validation_fraction > 0:
        metrics["val/best_accuracy"] = outcome.best.accuracy
    tracker.submit("the model", uploads.log_model(trainer.model, spec, folder.path / "model"))
    kept = _keep(course)
    for name, info in kept.items():
        tracker.submit(f"{name} checkpoint", uploads.log_checkpoint(name, info))
    tracker.submit("the note", uploads.log_summary(metrics, outcome, sheets))
    return Result(
        outcome="succeeded",
        reason=Reason.COMPLETED,
        evidence=f"test accuracy {test.best.accuracy:.4f} after epoch {test.best_epoch}",
        metrics=metrics,
        checkpoints=course.references(kept),
        artifacts=[folder.relative(path) for path in sorted(folder.artifacts.rglob("*.png"))],
        step=outcome.step,
    )


def _keep(course: Course) -> dict[Kept, CheckpointInfo]:
    """Prune; earlier attempts' checkpoints are not needed now.

    The last one stays even where the specification does not keep it: should this process die before
    its result is written, the next attempt begins there. The control plane removes it afterwards.
    """
    folder, keep = course.setting.folder, course.setting.spec.keep
    course.checkpoints.keep(best="best" in keep, last=True)
    for earlier in folder.earlier():
        shutil.rmtree(earlier.checkpoints, ignore_errors=True)
    return {name: read_info(folder.checkpoints / f"{name}.pt") for name in keep}


def _named(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in measures_of(evaluation).items()}
