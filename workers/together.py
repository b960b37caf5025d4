"""Several workers train one model together: Ray Train starts them and notices when one dies.

Each is an actor that runs the course of a job with one worker; `torch.distributed` joins them. The
first one keeps checkpoints, reports and tracks. Retries are the queue's business: whatever goes
wrong ends the attempt, and the next one goes on from the newest checkpoint.
"""

import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.attempt import Attempt, AttemptFolder, Reason, Result, reason_of_ray
from workers.cluster import bundle, connected
from workers.process import print_to
from workers.sentinel import attend
from workers.specs import ResourcesConfig
from workers.stop import StopFlag, StopSignal

logger = logging.getLogger(__name__)

CONTROLLER_FAILURES = 2
"""Of Train's controller. By default it tries for ever to start workers that find no room."""
START_TIMEOUT_S = "300"
"""How long workers may wait for their resources."""
RELAY_S = 0.25
UNTOLD = "incomplete: the first worker left no word of it"
"""Of what MLflow has: only the first worker writes to it."""

Work = Callable[[dict[str, Any]], None]
"""What every worker runs."""


def train_together(folder: AttemptFolder, attempt: Attempt, stop: StopFlag) -> Result:
    """Train with several workers; the driver itself computes nothing."""
    assert isinstance(stop, StopSignal)
    order = {"job": attempt.job, "attempt": attempt.attempt}
    with connected(stop), Relay(folder, stop):
        return run_workers(work, order, folder, attempt.spec.resources)


def run_workers(
    function: Work, order: dict[str, Any], folder: AttemptFolder, need: ResourcesConfig
) -> Result:
    """Run `function(order)` in every worker; what the first one left, or what went wrong.

    Args:
        function: Importable wherever the workers run.
        order: Its argument.
        folder: Where the first worker leaves its outcome.
        need: What to reserve for each worker, and how many there are.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", START_TIMEOUT_S)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    for rank in range(need.workers):  # of workers that were lost before
        folder.outcome_file(rank).unlink(missing_ok=True)
    resources = bundle(need)
    gpus = resources.pop("GPU", 0)
    trainer = TorchTrainer(
        function,
        train_loop_config=order,
        scaling_config=ScalingConfig(
            num_workers=need.workers,
            use_gpu=bool(gpus),
            resources_per_worker=resources | ({"GPU": gpus} if gpus else {}),
            # GPUs are nearest to each other within a node; on CPUs workers slow each other there.
            placement_strategy="PACK" if gpus else "SPREAD",
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder.path),
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return _failure(folder, need.workers, error)
    outcome = folder.read_outcome(0)
    if outcome is None:
        return Result(
            outcome="failed",
            reason=Reason.ERROR,
            evidence="the first worker left no outcome",
            tracking=UNTOLD,
        )
    return outcome


def work(order: dict[str, Any]) -> None:
    """One worker of a training job."""
    from workers.train import follow, lead

    folder = AttemptFolder(Path(os.environ["CAPS_STORAGE"]), order["job"], order["attempt"])
    stop = StopFlag(folder)
    with worker(folder, folder) as rank:
        attempt = folder.accept_attempt()
        assert isinstance(attempt, Attempt)
        if rank == 0:
            folder.write_outcome(0, lead(folder, attempt, stop))
        else:
            follow(folder, attempt, stop, rank)


@contextmanager
def worker(folder: AttemptFolder, whole: AttemptFolder, role: str = "") -> Iterator[int]:
    """A worker's process in order, and its rank; an error is written down before it is raised.

    Args:
        folder: Where it leaves its log and what became of it.
        whole: The attempt that it belongs to; of a trial the search's.
        role: What it is registered as, before `rank-R`.
    """
    from ray.train import get_context

    rank = int(get_context().get_world_rank())
    print_to(folder.log if rank == 0 else folder.path / f"log-rank-{rank}.txt")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    attend(whole, f"{role}rank-{rank}")
    try:
        _choose_gpu()
        yield rank
    except Exception as error:
        from workers.failures import failed

        traceback.print_exc()
        evidence = f"worker {rank}: {type(error).__name__}: {_first_line(error)}"
        folder.write_outcome(rank, failed(error, evidence))
        raise


def _choose_gpu() -> None:
    """Of the GPUs that the workers of a node see, the one that is this worker's."""
    import torch

    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


class Relay:
    """Passes a signal that the driver got on to the workers, who know no signals."""

    def __init__(self, folder: AttemptFolder, stop: StopSignal) -> None:
        self._folder = folder
        self._stop = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(RELAY_S):
            if self._stop.cause() == "signal":
                self._folder.request_leave()
                return


def _failure(folder: AttemptFolder, workers: int, error: Exception) -> Result:
    """What went wrong: the most telling of the workers' errors, else that one of them is gone."""
    outcomes = {rank: folder.read_outcome(rank) for rank in range(workers)}
    failures = [found for found in outcomes.values() if found and found.outcome == "failed"]
    # Only the first worker writes to MLflow.
    first = outcomes[0]
    tracking = first.tracking if first else UNTOLD
    # An error of one worker takes the others down: theirs only say that somebody is gone.
    own = [found for found in failures if found.reason is not Reason.WORKER_LOST]
    if own:
        telling = next((found for found in own if found.reason is not Reason.ERROR), own[0])
        return telling.model_copy(update={"tracking": tracking})
    silent = [rank for rank, found in outcomes.items() if found is None]
    gone = f"worker {silent[0]}" if len(silent) == 1 else "a worker"
    said = failures[0].evidence if failures else str(error).replace("\n", " ")
    evidence = f"{gone} of {workers} died; {said}"[:1000]
    return Result(
        outcome="interrupted",
        reason=reason_of_ray(str(error)),
        evidence=evidence,
        tracking=tracking,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:500]
