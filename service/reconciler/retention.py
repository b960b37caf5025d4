"""Which checkpoints of a training that has ended stay.

Of one that succeeded its worker has kept what the specification's `keep` names. One that failed or
was cancelled may be retried: the newest attempt's with a whole checkpoint stay, and what its result
names; those of all other attempts go.
"""

import hashlib
import json
import shutil
from pathlib import Path

from service.queue.job import Job, Kind, State
from workers.attempt import AttemptFolder


def prune(storage: Path, job: Job) -> None:
    """Remove what nobody needs; can be repeated."""
    if job.kind is not Kind.TRAIN or job.attempt == 0 or job.state is State.SUCCEEDED:
        return
    newest = AttemptFolder(storage, job.id, job.attempt)
    named = _named_by_result(storage, job)
    found = False
    for folder in [newest, *newest.earlier()]:
        if found and folder.checkpoints not in named:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
        found = found or _has_whole(folder.checkpoints)


def _named_by_result(storage: Path, job: Job) -> set[Path]:
    """Folders of checkpoints that the job's result offers to others."""
    references = (job.result or {}).get("checkpoints", {}).values()
    return {(storage / reference["path"]).parent for reference in references}


def _has_whole(checkpoints: Path) -> bool:
    """Whether one can be resumed from, as far as its digest tells."""
    return any(_whole(path) for path in checkpoints.glob("*.pt"))


def _whole(path: Path) -> bool:
    try:
        expected = json.loads(path.with_name(f"{path.name}.json").read_bytes())["sha256"]
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False
