"""Losses in a row, by made-up attempts: what a verdict takes a job's failure for."""

from pathlib import Path
from types import SimpleNamespace

from chaos.losses import lost_in_a_row
from service.testing.checkpoints import PlayedCheckpoints
from workers.attempt import AttemptFolder, Progress, Resumed

JOB = "one"


def lost(
    storage: Path,
    number: int,
    *,
    begun: int = 0,
    left: int | None = None,
    reason: str = "worker-lost",
    head: bool = False,
) -> SimpleNamespace:
    """An attempt that went on from a step, perhaps left a checkpoint, and was lost."""
    folder = AttemptFolder(storage, JOB, number)
    resumed = Resumed(attempt=number - 1, step=begun) if begun else None
    folder.write_progress(Progress(phase="training", first_step_at=1.0, resumed=resumed))
    if left is not None:
        PlayedCheckpoints(folder).save(left)
    session_lost_at = 1.0 if head else None
    return SimpleNamespace(
        job_id=JOB, number=number, reason=reason, session_lost_at=session_lost_at
    )


def count(
    storage: Path,
    attempts: list[SimpleNamespace],
    but: tuple[int, ...] = (),
    again_after: tuple[int, ...] = (),
) -> int:
    """The losses, where all attempts but these were hit, and a user had some tried again."""
    struck = {(JOB, row.number) for row in attempts if row.number not in but}
    events = [SimpleNamespace(type="retry-requested", attempt=number) for number in again_after]
    return lost_in_a_row(attempts, events, struck, storage)


def test_three_in_a_row(tmp_path: Path) -> None:
    attempts = [lost(tmp_path, 1, left=2), *(lost(tmp_path, n, begun=2) for n in (2, 3, 4))]
    assert count(tmp_path, attempts) == 3


def test_a_gain_in_between_ends_the_row(tmp_path: Path) -> None:
    attempts = [
        lost(tmp_path, 1),
        lost(tmp_path, 2, left=2),
        lost(tmp_path, 3, begun=2),
        lost(tmp_path, 4, begun=2),
    ]
    assert count(tmp_path, attempts) == 2


def test_what_the_last_one_left_is_a_gain(tmp_path: Path) -> None:
    """Its folder tells: nobody has gone on from there."""
    attempts = [lost(tmp_path, 1), lost(tmp_path, 2), lost(tmp_path, 3, left=4)]
    assert count(tmp_path, attempts) == 0


def test_a_checkpoint_where_it_began_is_no_gain(tmp_path: Path) -> None:
    attempts = [lost(tmp_path, 1, left=4), lost(tmp_path, 2, begun=4, left=4)]
    assert count(tmp_path, attempts) == 1


def test_a_dead_head_neither_adds_nor_resets(tmp_path: Path) -> None:
    attempts = [lost(tmp_path, 1), lost(tmp_path, 2, head=True), lost(tmp_path, 3)]
    assert count(tmp_path, attempts) == 2


def test_a_dead_head_hides_no_gain(tmp_path: Path) -> None:
    attempts = [
        lost(tmp_path, 1),
        lost(tmp_path, 2, left=2, head=True),
        lost(tmp_path, 3, begun=2),
    ]
    assert count(tmp_path, attempts) == 1


def test_a_loss_that_is_none_of_ours_excuses_nothing(tmp_path: Path) -> None:
    attempts = [lost(tmp_path, number) for number in (1, 2, 3)]
    assert count(tmp_path, attempts, but=(2,)) == 2


def test_an_error_and_a_users_retry_end_the_row(tmp_path: Path) -> None:
    attempts = [lost(tmp_path, 1), lost(tmp_path, 2, reason="error"), lost(tmp_path, 3)]
    assert count(tmp_path, attempts) == 1
    attempts = [lost(tmp_path, number) for number in (1, 2, 3)]
    assert count(tmp_path, attempts, again_after=(2,)) == 1
