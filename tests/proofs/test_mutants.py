"""The kill loop sees it when a protection is missing: each is taken away in turn."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proofs.simulation import LockLosing
from proofs.test_ten_thousand_kills import kill_loop
from service import reconcile as decide
from service.queue import store as queue
from service.queue.job import Job
from service.reconciler import aftercare, observer, waiting
from service.testing.cluster import FakeCluster
from workers.attempt import AttemptFolder

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("simulated_store", ["sqlite"], indirect=True),
]

Patch = pytest.MonkeyPatch

DOUBLED = "overlap|two may commit|alive after"
MISCOUNTED = "losses miscounted|poison goes on|given up too early"


def no_proof_after_the_heads_death(patch: Patch) -> None:
    """A new attempt as soon as another session is seen."""
    patch.setattr(decide, "SESSION_MARGIN_S", -1000.0)


def one_word_of_ray_is_enough(patch: Patch) -> None:
    """FAILED is believed at once."""
    patch.setattr(decide, "CONFIRM_S", -1.0)


def no_session_of_the_attempt(patch: Patch) -> None:
    """What a dead head may have started is submitted again to the next one."""
    patch.setattr(decide, "_session_lost", lambda attempt, seen: False)


def no_compare_and_set(patch: Patch) -> None:
    """Whoever comes last wins, whatever he has read."""
    compare = queue._compare_and_set

    def blindly(connection: Any, job: Job, changes: Any) -> None:
        row = connection.execute(queue.select(queue.jobs).where(queue.jobs.c.id == job.id)).one()
        compare(connection, replace(job, attempt=row.attempt, version=row.version), changes)

    patch.setattr(queue, "_compare_and_set", blindly)


def results_of_any_attempt(patch: Patch) -> None:
    """The newest result that there is, whoever left it."""
    read = AttemptFolder.read_result

    def read_any(folder: AttemptFolder) -> Any:
        found = (read(one) for one in (folder, *folder.earlier()))
        return next((result for result in found if result is not None), None)

    patch.setattr(AttemptFolder, "read_result", read_any)


def ray_is_called_before_the_commit(patch: Patch) -> None:
    """The attempt's row is written when Ray has the job."""

    def dispatch(self: waiting.WaitingJobs, job: Job, session: str | None) -> None:
        number = job.attempt + 1
        cluster = self._parts.cluster
        assert isinstance(cluster, FakeCluster)
        need = waiting.need_of(job.spec).entrypoint
        if job.run_id is None:
            experiment_id, run_id = self._parts.runs.ensure(job)
            job = self._parts.store.update(job, experiment_id=experiment_id, run_id=run_id)
        cluster.submit(f"caps-{job.id}-{number}", job.id, number, need, "another queue")
        started = queue.NewEvent("started", "an attempt")
        waiting.submit(self._parts, self._parts.store.start_attempt(job, started, session))

    patch.setattr(waiting.WaitingJobs, "_dispatch", dispatch)


def lost_jobs_are_not_looked_at(patch: Patch) -> None:
    """Of running jobs only those that Ray knows are looked at."""
    look = observer.Observer.look

    def hopeful(self: observer.Observer, job: Job, sight: Any) -> decide.Seen:
        seen = look(self, job, sight)
        if seen.ray.status is decide.RayStatus.MISSING:
            return replace(seen, ray=replace(seen.ray, status=decide.RayStatus.UNREACHABLE))
        return seen

    patch.setattr(observer.Observer, "look", hopeful)


def the_best_checkpoint_counts_as_progress(patch: Patch) -> None:
    """What an attempt has taken over from the one before is taken for its own work."""
    look = observer.Observer.look

    def indulgent(self: observer.Observer, job: Job, sight: Any) -> decide.Seen:
        checkpoints = self._parts.folder(job).checkpoints
        found = any(checkpoints.glob("*.pt.json"))
        return replace(look(self, job, sight), has_checkpoint=found)

    patch.setattr(observer.Observer, "look", indulgent)


def where_an_attempt_began_is_not_looked_at(patch: Patch) -> None:
    """Whatever checkpoint it has made counts, also one of the step from which it went on."""
    gained = observer._gained
    patch.setattr(observer, "_gained", lambda checkpoints, begun_at: gained(checkpoints, 0))


def the_last_checkpoint_always_counts(patch: Patch) -> None:
    """Also where all was trained before the attempt began."""
    gained = observer._gained

    def indulgent(checkpoints: Path, begun_at: int) -> bool:
        return gained(checkpoints, begun_at) or (checkpoints / "last.pt.json").exists()

    patch.setattr(observer, "_gained", indulgent)


def a_dead_head_sets_losses(patch: Patch, losses: Callable[[Job, bool], int]) -> None:
    """By the job, and by whether the attempt has gained anything."""
    after_loss = decide._after_loss

    def other(job: Job, attempt: Any, seen: decide.Seen, *why: Any) -> decide.Action:
        action = after_loss(job, attempt, seen, *why)
        if isinstance(action, decide.Requeue) and decide._session_lost(attempt, seen):
            return replace(action, losses=losses(job, seen.has_checkpoint))
        return action

    patch.setattr(decide, "_after_loss", other)


def a_dead_head_hides_what_was_gained(patch: Patch) -> None:
    """The losses before it are counted on."""
    a_dead_head_sets_losses(patch, lambda job, gained: job.losses)


def a_dead_head_forgives_all(patch: Patch) -> None:
    """The losses before it are forgotten, though nothing was gained."""
    a_dead_head_sets_losses(patch, lambda job, gained: 0)


def the_clock_proves_death(patch: Patch) -> None:
    """However little time this control plane itself has seen pass."""
    patch.setattr(decide, "_waited_s", lambda since, seen, now: now - since)


def who_finds_no_room_holds_others_up(patch: Patch) -> None:
    """Though what he waits for is not there, and they need something else."""

    def over(look: waiting.Look) -> bool:
        return look.without_room >= waiting.ENOUGH_WITHOUT_ROOM

    patch.setattr(waiting.Look, "over", property(over))


def nobody_looks_behind_the_head(patch: Patch) -> None:
    """Only so many jobs of the queue are ever looked at."""
    look_behind = waiting.WaitingJobs._look_behind

    def first_ones(self: waiting.WaitingJobs, last: Job | None, look: waiting.Look) -> Job | None:
        return look_behind(self, None, look) if last is None else last

    patch.setattr(waiting.WaitingJobs, "_look_behind", first_ones)


def nothing_but_the_best_is_kept(patch: Patch) -> None:
    """Of an ended job's checkpoints those go from which it would go on."""

    def prune(storage: Path, job: Job) -> None:
        for file in (storage / "jobs" / job.id).glob("*/checkpoints/step-*"):
            file.unlink()

    patch.setattr(aftercare, "prune", prune)


def deleted_before_it_is_closed(patch: Patch) -> None:
    """A deleted job is forgotten at once, whether MLflow knows of its end or not."""
    act = aftercare.Aftercare.act

    def hasty(self: aftercare.Aftercare) -> None:
        parts = self._parts
        with parts.store.engine.connect() as connection:
            ids = connection.execute(queue.select(queue.jobs.c.id, queue.jobs.c.desired)).all()
        for row in ids:
            if row.desired == "delete":
                shutil.rmtree(parts.settings.storage_root / "jobs" / row.id, ignore_errors=True)
                parts.store.remove(row.id)
        act(self)

    patch.setattr(aftercare.Aftercare, "act", hasty)


@pytest.mark.parametrize(
    ("mutation", "seen_as"),
    [
        (no_proof_after_the_heads_death, DOUBLED),
        (one_word_of_ray_is_enough, DOUBLED),
        (no_session_of_the_attempt, f"{DOUBLED}|{MISCOUNTED}"),
        (no_compare_and_set, "stale|twice|double|open attempt|changed after|without an event"),
        (results_of_any_attempt, "stale commit|alive after"),
        (lost_jobs_are_not_looked_at, "stuck"),
        (ray_is_called_before_the_commit, "alive after|two may commit"),
        (the_best_checkpoint_counts_as_progress, MISCOUNTED),
        (where_an_attempt_began_is_not_looked_at, MISCOUNTED),
        (the_last_checkpoint_always_counts, MISCOUNTED),
        (a_dead_head_hides_what_was_gained, MISCOUNTED),
        (a_dead_head_forgives_all, MISCOUNTED),
        (the_clock_proves_death, DOUBLED),
        (who_finds_no_room_holds_others_up, "stuck"),
        (nobody_looks_behind_the_head, "stuck"),
        (nothing_but_the_best_is_kept, "work thrown away"),
        (deleted_before_it_is_closed, "run left open"),
    ],
)
def test_a_missing_protection_is_seen(
    simulated_store: LockLosing,
    storage: Path,
    monkeypatch: Patch,
    mutation: Callable[[Patch], None],
    seen_as: str,
) -> None:
    mutation(monkeypatch)
    with pytest.raises(AssertionError, match=seen_as) as found:
        kill_loop(simulated_store, storage, kills=2500, a_round=125, head_chance=0.15)
    print(mutation.__name__, str(found.value).splitlines()[0][:200])
