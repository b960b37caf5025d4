"""One training job: the function that every attempt runs, in a driver of its own.

Data come from CAPS_DATA_DIR, the start from the newest checkpoint of earlier attempts (or from
`init_from`), and what is learned goes to the attempt's folder and to MLflow.
"""

import logging
import shutil

import torch

from capsmodel.checkpoint import CheckpointFolder, CheckpointInfo, load_checkpoint, read_info
from capsmodel.datasets import load_dataset
from capsmodel.metrics import Evaluation
from capsmodel.training import Trainer, TrainingOutcome
from workers import uploads
from workers.artifacts import build_artifacts
from workers.attempt import Attempt, AttemptFolder, CheckpointRef, Kept, Outcome, Reason, Result
from workers.reporter import Reporter, measures_of
from workers.spool import Spool
from workers.stop import StopCause, StopSignal
from workers.tracking import Tracker

logger = logging.getLogger(__name__)

PATIENCE_DONE_S = 120.0
"""How long a finished training waits for MLflow to take what is left."""
PATIENCE_STOPPED_S = 3.0
"""How long a cancelled or failed one does: its slot is wanted."""


def train(folder: AttemptFolder, attempt: Attempt, stop: StopSignal) -> Result:
    """Train, evaluate and report, as `attempt.spec` says; resumes earlier attempts' work."""
    spec = attempt.spec
    device = _device(spec.resources.cpus_per_worker, spec.resources.gpus_per_worker)
    spool = Spool(folder.metrics, [earlier.metrics for earlier in folder.earlier()])
    tracker = Tracker(attempt.tracking_uri, attempt.run_id, spool)
    tracker.submit("start of the run", uploads.start(attempt))
    tracker.start()
    try:
        result = _train(folder, attempt, stop, tracker, device)
    except BaseException:
        if not folder.superseded():  # the run belongs to the later attempt
            tracker.submit("end of the run", uploads.end("FAILED"))
        tracker.finish(PATIENCE_STOPPED_S)
        raise
    done = result.outcome == "succeeded"
    patience, hurry = (PATIENCE_DONE_S, stop.cause) if done else (PATIENCE_STOPPED_S, never)
    status = {"succeeded": "FINISHED", "cancelled": "KILLED", "failed": "FAILED"}
    if result.outcome in status:
        tracker.submit("end of the run", uploads.end(status[result.outcome]))
    return result.model_copy(update={"tracking": tracker.finish(patience, hurry)})


def never() -> None:
    """Nothing hurries an attempt that was stopped: its patience is short."""


def _train(
    folder: AttemptFolder,
    attempt: Attempt,
    stop: StopSignal,
    tracker: Tracker,
    device: torch.device,
) -> Result:
    spec = attempt.spec
    dataset = load_dataset(spec.dataset)
    tracker.submit("data set", uploads.log_dataset(spec.dataset.type, dataset))
    checkpoints = CheckpointFolder(folder.checkpoints)
    reporter = Reporter(folder, spec, tracker, checkpoints, stop, build_artifacts(spec.artifacts))
    trainer = Trainer(spec.training, dataset, device=device, callbacks=[reporter])
    _restore(trainer, folder, attempt, checkpoints)
    outcome = trainer.fit()
    if outcome.stopped == "requested":
        return _stopped(folder, trainer, stop, checkpoints)
    return _finish(folder, attempt, trainer, outcome, reporter, tracker, checkpoints)


def _device(cpus: int, gpus: int) -> torch.device:
    torch.set_num_threads(cpus)
    if gpus and not torch.cuda.is_available():
        raise RuntimeError("resources.gpus_per_worker is 1, but PyTorch finds no GPU here")
    return torch.device("cuda" if gpus else "cpu")


def _restore(
    trainer: Trainer, folder: AttemptFolder, attempt: Attempt, checkpoints: CheckpointFolder
) -> None:
    """Go on from the newest checkpoint that verifies, else from `init_from`, else afresh."""
    for earlier in [folder, *folder.earlier()]:
        source = CheckpointFolder(earlier.checkpoints)
        newest, reports = source.newest_verified()
        for report in reports:
            logger.warning("a checkpoint is skipped: %s", report)
        if newest is None:
            continue
        trainer.load_state_dict(load_checkpoint(newest.path, newest.sha256))
        logger.info("resumed from %s, step %d", folder.relative(newest.path), newest.step)
        if earlier is not folder:
            _carry_best(trainer, newest, source, checkpoints)
        return
    if attempt.init_checkpoint is not None:
        trainer.load_weights(load_checkpoint(folder.storage / attempt.init_checkpoint))
        logger.info("initial weights from %s", attempt.init_checkpoint)


def _carry_best(
    trainer: Trainer, newest: CheckpointInfo, source: CheckpointFolder, own: CheckpointFolder
) -> None:
    """Take the best checkpoint over: the newest, if a crash came before it was marked."""
    if trainer.best is None:
        return
    marked = source.best()
    if trainer.best.step == newest.step:
        own.adopt_best(newest)
    elif marked is not None:
        own.adopt_best(marked)


def _stopped(
    folder: AttemptFolder, trainer: Trainer, stop: StopSignal, checkpoints: CheckpointFolder
) -> Result:
    kept: dict[Kept, CheckpointInfo] = {}
    kept["last"] = checkpoints.save(trainer.state_dict(), trainer.epoch, trainer.step)
    best = checkpoints.best()
    if best is not None:
        kept["best"] = best
    outcomes: dict[StopCause | None, tuple[Outcome, Reason]] = {
        "pause": ("paused", Reason.PAUSED),
        "cancel": ("cancelled", Reason.CANCELLED),
    }
    outcome, reason = outcomes.get(stop.cause(), ("interrupted", Reason.INTERRUPTED))
    return Result(
        outcome=outcome,
        reason=reason,
        evidence=f"stopped at step {trainer.step} of {trainer.total_steps}; checkpoint saved",
        checkpoints={name: _reference(folder, info) for name, info in kept.items()},
        step=trainer.step,
    )


def _finish(
    folder: AttemptFolder,
    attempt: Attempt,
    trainer: Trainer,
    outcome: TrainingOutcome,
    reporter: Reporter,
    tracker: Tracker,
    checkpoints: CheckpointFolder,
) -> Result:
    """Read the test set, once, for last and best weights; make and send what is to stay."""
    spec = attempt.spec
    reporter.phase("evaluating", trainer)
    last_test = trainer.evaluate("test")
    tracker.log(_named("test_last", last_test), trainer.step)
    last = checkpoints.save(trainer.state_dict(), trainer.epoch, trainer.step)
    best = checkpoints.best() or checkpoints.mark_best(last)
    best_test = last_test
    if best.step != last.step:
        trainer.load_weights(load_checkpoint(best.path, best.sha256))
        best_test = trainer.evaluate("test")
    facts = {f"data/{name}": value for name, value in trainer.dataset.facts.items()}
    tracker.log(_named("test", best_test) | facts, outcome.step)
    reporter.phase("finishing", trainer)
    sheets = reporter.pictures(trainer, "test", outcome.epoch)
    metrics = {**_named("test", best_test), **_named("test_last", last_test), **facts}
    if outcome.best is not None:
        metrics["val/best_accuracy"] = outcome.best.accuracy
    tracker.submit("the model", uploads.log_model(trainer.model, spec, folder.path / "model"))
    kept = _keep(folder, spec.keep, checkpoints)
    for name, info in kept.items():
        tracker.submit(f"{name} checkpoint", uploads.log_checkpoint(name, info))
    tracker.submit("the note", uploads.log_summary(metrics, outcome, sheets))
    return Result(
        outcome="succeeded",
        reason=Reason.COMPLETED,
        evidence=f"test accuracy {best_test.accuracy:.4f} after epoch {best.epoch}",
        metrics=metrics,
        checkpoints={name: _reference(folder, info) for name, info in kept.items()},
        artifacts=[folder.relative(path) for path in sorted(folder.artifacts.rglob("*.png"))],
        step=outcome.step,
    )


def _keep(
    folder: AttemptFolder, keep: tuple[Kept, ...], checkpoints: CheckpointFolder
) -> dict[Kept, CheckpointInfo]:
    """Prune to what the specification keeps; earlier attempts' checkpoints are not needed now."""
    checkpoints.keep(best="best" in keep, last="last" in keep)
    for earlier in folder.earlier():
        shutil.rmtree(earlier.checkpoints, ignore_errors=True)
    return {name: read_info(folder.checkpoints / f"{name}.pt") for name in keep}


def _reference(folder: AttemptFolder, info: CheckpointInfo) -> CheckpointRef:
    return CheckpointRef(
        path=folder.relative(info.path), sha256=info.sha256, epoch=info.epoch, step=info.step
    )


def _named(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in measures_of(evaluation).items()}
