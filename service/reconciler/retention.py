"""Which checkpoints of a training that has ended stay.

Of one that succeeded what the specification's `keep` names. One that failed or was cancelled may be
retried: all that a further attempt could begin from stays, down to the newest attempt that left a
whole checkpoint of its own, and what its result names; those of older attempts go.
"""

import hashlib
import json
import shutil
from pathlib import Path

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
        found = found or _has_own(folder.checkpoints)


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


def _has_own(checkpoints: Path) -> bool:
    """Whether one can be resumed from that the attempt has made, as far as its digest tells.

    The best one does not count: an attempt takes it over from the one before.
    """
    made = [*checkpoints.glob("step-*.pt"), *checkpoints.glob("last.pt")]
    return any(_whole(path) for path in made)


def _whole(path: Path) -> bool:
    try:
        expected = json.loads(path.with_name(f"{path.name}.json").read_bytes())["sha256"]
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False
