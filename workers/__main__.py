"""The entrypoint of every Ray job: `python -m workers JOB ATTEMPT`.

Puts the process in order (log file, death with its parent, signals), runs what `attempt.json`
asks for, and leaves `result.json` as its last act. Heavy imports come after the first heartbeat.
"""

import argparse
import logging
import os
import traceback
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from workers.attempt import (
    AnyAttempt,
    AttemptFolder,
    Progress,
    Reason,
    Result,
    VersionMismatchError,
    reason_of_ray,
)
from workers.cluster import ClusterLostError
from workers.process import die_with_parent, print_to
from workers.sentinel import attend
from workers.stop import StopSignal

KINDS = {"train": "workers.train:train", "search": "workers.search.driver:search"}
"""What runs a job of each kind: a function of folder, attempt and stop signal."""


def main() -> int:
    """Run one attempt; exit status 0 unless it failed or was superseded."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("attempt", type=int)
    arguments = parser.parse_args()
    storage = os.environ.get("CAPS_STORAGE")
    if not storage:
        parser.error("CAPS_STORAGE is not set on this node")
    folder = AttemptFolder(Path(storage), arguments.job, arguments.attempt)

    die_with_parent()
    print_to(folder.log)
    found = _orders(folder)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    attend(folder, _role(found))
    folder.write_progress(Progress(phase="starting"))
    stop = StopSignal(folder)
    result = found if isinstance(found, Result) else _run(folder, found, stop)
    if folder.superseded():
        logging.warning("a later attempt exists: this one leaves no result")
        return 1
    folder.write_result(result)
    logging.info("%s: %s %s", result.outcome, result.reason, result.evidence)
    return 1 if result.outcome == "failed" else 0


def _orders(folder: AttemptFolder) -> AnyAttempt | Result:
    """What is to be done; a result where that can't be known."""
    try:
        return folder.accept_attempt()
    except FileNotFoundError:
        traceback.print_exc()
        evidence = (
            f"{folder.path / 'attempt.json'} is missing, which says what is to be done: is "
            "CAPS_STORAGE the control plane's folder on this node, too?"
        )
        return Result(outcome="failed", reason=Reason.ERROR, evidence=evidence)
    except (ValidationError, VersionMismatchError) as error:
        # A specification of another release may not even be valid here.
        return Result(outcome="failed", reason=Reason.VERSION_MISMATCH, evidence=str(error)[:1000])


def _role(found: AnyAttempt | Result) -> str:
    """A driver has the work done by others; a worker does it."""
    if isinstance(found, Result):
        return "worker"
    several = found.kind == "search" or found.spec.resources.workers > 1
    return "driver" if several else "worker"


def _run(folder: AttemptFolder, attempt: AnyAttempt, stop: StopSignal) -> Result:
    try:
        module, _, name = KINDS[attempt.kind].partition(":")
        run = getattr(import_module(module), name)
        result: Result = run(folder, attempt, stop)
        return result
    except ClusterLostError as error:
        from workers.tracking import tracking_of

        traceback.print_exc()
        evidence = str(error)[:1000]
        return Result(
            outcome="interrupted",
            reason=reason_of_ray(evidence),
            evidence=evidence,
            tracking=tracking_of(error, "incomplete: the workers were lost with the cluster"),
        )
    except Exception as error:
        from workers.failures import failed

        traceback.print_exc()
        return failed(error, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # The result is written: no thread that waits for a server may keep the job's slot.
    os._exit(status)
