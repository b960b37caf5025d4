"""A trial whose training takes several workers: Ray Train within a trial of Tune.

The trial's own process computes nothing. It hears of the epochs from the trial's folder, where the
first worker writes them down, and passes them on to Tune.
"""

import threading
from pathlib import Path
from typing import Any

from workers.attempt import AttemptFolder, Reason, Result, SearchAttempt
from workers.course import Course, Setting, prepare_device
from workers.search.trainable import Tell, TrialOrder, WorkersLostError
from workers.search.trial import Diary, SpooledTelemetry, dataset_on, told, train_alone, trial_spec
from workers.specs import TrainSpec
from workers.stop import StopFlag
from workers.together import run_workers, worker
from workers.train import Silence
from workers.trials import Report, all_reports, trial_folder

LOOK_EVERY_S = 0.5
LEAVE_S = 30.0
"""How long workers may take to leave a checkpoint when the scheduler ends the trial."""


def train_group(
    order: TrialOrder, folder: AttemptFolder, spec: TrainSpec, tell: Tell
) -> tuple[Result, Report | None]:
    """Have the workers train, and tell what they report.

    Returns:
        The result, and the last epoch's report, which is still to be told.
    """
    results: list[Result] = []
    errors: list[Exception] = []
    orders = {"order": order.model_dump_json(), "storage": str(folder.storage)}

    def run() -> None:
        try:
            results.append(run_workers(work, orders, folder, spec.resources))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="workers", daemon=True)
    thread.start()
    passed = 0
    try:
        while thread.is_alive():
            thread.join(LOOK_EVERY_S)
            passed = _pass_on(folder, spec, passed, tell)
    except SystemExit:  # the scheduler ends the trial
        folder.request_leave()
        thread.join(LEAVE_S)
        raise
    if errors:
        raise errors[0]
    result = results[0]
    if result.outcome == "interrupted" and result.reason is not Reason.INTERRUPTED:
        # Tune starts a trial again whose process dies, up to budget.max_losses.
        raise WorkersLostError(result.evidence)
    reports = all_reports(folder)
    done = result.outcome == "succeeded" and reports
    return result, reports[-1] if done else None


def work(orders: dict[str, Any]) -> None:
    """One worker of the trial."""
    order = TrialOrder.model_validate_json(orders["order"])
    storage = Path(orders["storage"])
    folder = trial_folder(storage, order.search, order.number, order.attempt)
    search = AttemptFolder(storage, order.search, order.attempt)
    with worker(folder, search, f"trial-{order.number}-") as rank:
        attempt = search.accept_attempt()
        assert isinstance(attempt, SearchAttempt)
        spec = trial_spec(attempt, order)
        setting = Setting(
            folder=folder,
            spec=spec,
            device=prepare_device(spec.resources.cpus_per_worker, spec.resources.gpus_per_worker),
            telemetry=SpooledTelemetry(folder) if rank == 0 else Silence(),
            stop=StopFlag(search, folder, seconds=spec.max_runtime_s),
            init_checkpoint=attempt.init_checkpoint,
            rank=rank,
        )
        if rank == 0:
            diary = Diary(folder, order.number, attempt.spec)
            result, _ = train_alone(setting, diary, tell=lambda report: None)
            folder.write_outcome(0, result)
        else:
            Course(setting, dataset_on(setting.device, spec.dataset)).run()


def _pass_on(folder: AttemptFolder, spec: TrainSpec, passed: int, tell: Tell) -> int:
    """Tell what is new, but for the last epoch; how many reports were told by now."""
    reports = all_reports(folder)
    for report in reports[passed:]:
        if report.epoch < spec.epochs:
            tell(told(report))
    return len(reports)
