"""Which checkpoints of a training that has ended stay.

Of one that succeeded what the specification's `keep` names. One that failed or was cancelled may be
retried: all that a further attempt could begin from stays, down to the newest attempt that left a
whole checkpoint of its own, and what its result names; those of older attempts go.
"""

import shutil
from pathlib import Path

from capsmodel.sidecar import LAST, BadCheckpointError, read_own
from service.queue.job import Job, Kind, State
from workers.attempt import AttemptFolder


def prune(storage: Path, job: Job) -> None:
    """Remove what nobody needs; can be repeated."""
    if job.kind is not Kind.TRAIN or job.attempt == 0:
        return
    if job.state is State.SUCCEEDED:
        _keep_named(storage, job)
        return
    newest = AttemptFolder(storage, job.id, job.attempt)
    named = _named_by_result(storage, job)
    found = False
    for folder in [newest, *newest.earlier()]:
        if found and folder.checkpoints not in named:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
        found = found or _has_own(folder)


def _keep_named(storage: Path, job: Job) -> None:
    """Remove what the worker needed until its result was written."""
    checkpoints = AttemptFolder(storage, job.id, job.attempt).checkpoints
    for name in {"best", "last"} - {*job.training.keep}:
        for file in (f"{name}.pt", f"{name}.pt.json"):
            (checkpoints / file).unlink(missing_ok=True)


def _named_by_result(storage: Path, job: Job) -> set[Path]:
    """Folders of checkpoints that the job's result offers to others."""
    references = (job.result or {}).get("checkpoints", {}).values()
    return {(storage / reference["path"]).parent for reference in references}


def _has_own(folder: AttemptFolder) -> bool:
    """Whether one can be resumed from that the attempt has made; by the worker's own rule.

    The best one does not count: an attempt takes it over from the one before.
    """
    made = [*folder.checkpoints.glob("step-*.pt"), folder.checkpoints / LAST]
    return any(_is_own(path, folder.owner) for path in made)


def _is_own(path: Path, owner: str) -> bool:
    try:
        read_own(path, owner)
    except BadCheckpointError:
        return False
    return True
