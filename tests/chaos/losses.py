"""How often a job was lost in a row: by the kills that we know of, and by the files that it left.

The queue's rule, told again without its code: what an attempt gains ends the row, also where its
head died; a head's death without gain neither adds to it nor ends it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from capsmodel.sidecar import BadCheckpointError, read_sidecar
from workers.attempt import AttemptFolder

LOST = ("worker-lost", "node-lost", "interrupted")
BEGINS_ANEW = ("retry-requested", "retry-failed", "unpaused")
"""Events of a user's word, after which earlier losses count no more."""


def lost_in_a_row(
    attempts: Sequence[Any],
    events: Sequence[Any],
    struck: Collection[tuple[str, int]],
    storage: Path,
) -> int:
    """Losses by kills of ours, up to the last attempt, since something was gained.

    Args:
        attempts: The job's rows of that table, in order.
        events: Likewise.
        struck: Jobs and numbers of the attempts that were hit.
        storage: Where the attempts' folders are.
    """
    anew = {event.attempt for event in events if event.type in BEGINS_ANEW}
    last = attempts[-1].number if attempts else 0
    count = 0
    for row in reversed(attempts):
        forgiven = row.number in anew and row.number != last
        if forgiven or row.reason not in LOST or _gained(row, last, storage):
            break
        if row.session_lost_at is None and (row.job_id, row.number) in struck:
            count += 1
    return count


def _gained(row: Any, last: int, storage: Path) -> bool:
    """Whether the attempt left a checkpoint beyond where it began; of a search it is not known."""
    folder = AttemptFolder(storage, row.job_id, row.number)
    begun = _begun_at(folder)
    if begun is None:
        return False
    later = (AttemptFolder(storage, row.job_id, n) for n in range(row.number + 1, last + 1))
    told = (step for step in map(_begun_at, later) if step is not None)
    left = next(told, None)
    return (_newest_step(folder) if left is None else left) > begun


def _begun_at(folder: AttemptFolder) -> int | None:
    """The step at which it went on; None where it did not come so far as to tell."""
    progress = folder.read_progress()
    if progress is None or (progress.resumed is None and progress.first_step_at is None):
        return None
    return progress.resumed.step if progress.resumed else 0


def _newest_step(folder: AttemptFolder) -> int:
    """Of the checkpoints that the attempt made; the best one may be an earlier attempt's."""
    steps = [0]
    for sidecar in folder.checkpoints.glob("*.pt.json"):
        checkpoint = sidecar.with_suffix("")
        if checkpoint.name == "best.pt":
            continue
        try:
            steps.append(read_sidecar(checkpoint).step)
        except BadCheckpointError:
            continue  # never whole
    return max(steps)
