"""No work is thrown away, poison is given up, the end is told: each played once, on purpose.

The same is looked for in the kill loop and in the state machine, where it comes by chance.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proofs.simulation import POISONS, LockLosing, Simulation
from service.queue.job import State
from service.reconcile import BACKOFF_S, MAX_LOSSES
from service.testing.worker import FakeWorker

pytestmark = pytest.mark.parametrize("simulated_store", ["sqlite"], indirect=True)


@pytest.fixture
def world(simulated_store: LockLosing, storage: Path) -> Iterator[Simulation]:
    """All are well: what happens to them is the test's doing."""
    found = Simulation(simulated_store, storage, seed=1)
    found.healthy_spawns = True
    with found.patched():
        yield found


def until(world: Simulation, reached: Callable[[], bool], seconds: int = 120) -> None:
    """Let time pass until it is so."""
    for _ in range(seconds):
        world.tick()
        world.books.check()
        if reached():
            return
        world.work_all()
        world.books.check()
        world.clock.sleep(1.0)
    raise AssertionError(f"not reached: {world.unsettled()}")


def submit(world: Simulation) -> str:
    """A job of six steps."""
    job = world.submit()
    assert job is not None
    world.habits[job] = {"steps": 6}
    return job


def submit_elsewhere(world: Simulation) -> str:
    """A job on a machine whose processes the control plane does not see."""
    world.kill_node(world.ray.nodes[0])
    world.ray.nodes = [node for node in world.ray.nodes if not node.id.startswith("here")]
    return submit(world)


def worker_of(world: Simulation, job: str) -> FakeWorker | None:
    """Its living process."""
    return next((worker for worker in world.alive() if worker.job == job), None)


def reaches(world: Simulation, job: str, step: int) -> FakeWorker:
    """Its process has begun, and done so many steps."""

    def there() -> bool:
        worker = worker_of(world, job)
        return worker is not None and worker.begun and worker.step >= step

    until(world, there)
    found = worker_of(world, job)
    assert found is not None
    return found


def ends(world: Simulation, job: str, state: State) -> None:
    """It has ended so, and was cleared up after."""
    until(world, lambda: world.store.get(job).run_closed)
    assert world.store.get(job).state is state


@pytest.mark.parametrize("number", range(len(POISONS)))
def test_a_poison_job_is_given_up(world: Simulation, number: int) -> None:
    """Though every attempt has the best checkpoint of the one before."""
    job = world.submit_poison(number)
    assert job is not None
    ends(world, job, State.FAILED)
    gained = {attempt for id, attempt in world.fakes.gains if id == job}
    assert world.store.get(job).attempt == len(gained) + MAX_LOSSES
    assert "without a new checkpoint" in world.store.get(job).evidence


def test_a_job_that_gets_on_a_little_each_time_is_no_poison(world: Simulation) -> None:
    job = submit(world)
    for step in (2, 2, 4, 4):
        reaches(world, job, step)
        world.kill_worker(reaches(world, job, step))
    ends(world, job, State.SUCCEEDED)


@pytest.mark.parametrize("down_s", [0.0, 30.0])
def test_heads_that_die_make_no_poison(world: Simulation, down_s: float) -> None:
    """Nor where the processes are seen to be gone before another head is there."""
    job = submit(world)
    for _ in range(MAX_LOSSES + 1):
        reaches(world, job, 0)
        world.kill_head()
        waited = 0.0
        while waited < down_s:
            world.clock.sleep(1.0)
            world.ray.advance()
            world.tick()
            waited += 1.0
        world.start_head()
        until(world, lambda: worker_of(world, job) is None)
    ends(world, job, State.SUCCEEDED)


def test_a_dead_head_does_not_hide_what_was_gained(world: Simulation) -> None:
    """What an attempt left before its head died ends the row of losses before it."""
    job = submit(world)
    world.kill_worker(reaches(world, job, 0))
    reaches(world, job, 2)
    world.kill_head()
    world.start_head()
    for _ in range(MAX_LOSSES - 1):
        until(world, lambda: worker_of(world, job) is None)
        world.kill_worker(reaches(world, job, 2))
    ends(world, job, State.SUCCEEDED)


def test_a_dead_head_does_not_save_poison(world: Simulation) -> None:
    """Where the attempt has left nothing, the row of losses goes on behind it."""
    job = world.submit_poison(1)
    assert job is not None
    for _ in range(2):
        until(world, lambda: worker_of(world, job) is not None)
        world.kill_head()
        world.start_head()
        until(world, lambda: worker_of(world, job) is None)
    ends(world, job, State.FAILED)
    assert world.store.get(job).attempt <= MAX_LOSSES + 2


def test_retries_forget_no_work(world: Simulation) -> None:
    """Not even where an attempt in between has left nothing but the best of those before."""
    job = submit(world)
    reaches(world, job, 4)
    world.cancel(job)
    ends(world, job, State.CANCELLED)
    for _ in range(3):
        world.retry(job)
        worker = reaches(world, job, 4)
        world.kill_worker(worker)
        world.cancel(job)
        ends(world, job, State.CANCELLED)
    world.retry(job)
    ends(world, job, State.SUCCEEDED)
    assert [start.step for start in world.fakes.starts] == [0, 4, 4, 4, 4]


def test_a_spoilt_checkpoint_costs_itself_alone(world: Simulation) -> None:
    job = submit(world)
    reaches(world, job, 4)
    world.cancel(job)
    ends(world, job, State.CANCELLED)
    world.damage(job)
    world.retry(job)
    ends(world, job, State.SUCCEEDED)
    assert [start.step for start in world.fakes.starts] == [0, 2]


def test_a_deleted_job_waits_until_mlflow_knows_of_its_end(world: Simulation) -> None:
    job = submit(world)
    reaches(world, job, 2)
    world.mlflow.away = True
    world.cancel(job)
    until(world, lambda: world.store.get(job).state.terminal)
    world.delete(job)
    for _ in range(30):
        world.tick()
        world.books.check()
        world.clock.sleep(1.0)
    assert world.books.runs_of(job) == ["RUNNING"]
    assert (world.fakes.storage / "jobs" / job).exists()
    world.mlflow.away = False
    until(world, lambda: not world.store.current([job]))
    assert world.books.runs_of(job) == ["KILLED"]
    assert not (world.fakes.storage / "jobs" / job).exists()


@pytest.mark.parametrize("point", range(1, 12))
def test_a_run_is_closed_wherever_its_maker_was_killed(world: Simulation, point: int) -> None:
    """Also where it was made, its id was not noted, and the job came to its end before it ran."""
    job = world.submit()
    assert job is not None
    world.tick(kill_at=point)
    world.cancel(job)
    assert world.settle() == 0
    assert world.books.runs_of(job) in ([], ["KILLED"])


@pytest.mark.parametrize("moment", ["backing off", "asked to leave", "head lost", "worker lost"])
def test_a_clock_set_back_holds_nobody_up(world: Simulation, moment: str) -> None:
    """Times of before, which lie in the future now, count as now."""
    job = submit(world)
    worker = reaches(world, job, 0)
    if moment == "backing off":
        world.kill_worker(worker)
        worker = reaches(world, job, 0)
        world.kill_worker(worker)
        until(world, lambda: world.store.get(job).not_before is not None)
    elif moment == "asked to leave":
        worker.deaf = True
        world.cancel(job)
        until(world, lambda: (worker.folder.path / "stop").exists())
    elif moment == "head lost":
        world.kill_head()
        world.start_head()
        world.tick()
    else:
        world.kill_worker(worker)
        world.tick()
    world.set_clock(-3600.0)
    begun = world.clock.passed()
    until(world, lambda: not world.unsettled(), seconds=180)
    assert world.clock.passed() - begun < 60.0 + BACKOFF_S


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step_s", [3600.0, 86_400.0])
def test_a_clock_set_forward_doubles_nobody(world: Simulation, moment: str, step_s: float) -> None:
    """A lost head's processes get their time as it passes, whatever the clock says."""
    world.orphans_live_s = lambda timeout: (timeout + 2.9,)
    job = submit_elsewhere(world)
    reaches(world, job, 2)
    world.kill_head()
    if moment == "before":
        world.set_clock(step_s)
    world.start_head()
    world.tick()
    if moment == "after":
        world.set_clock(step_s)
    begun = world.clock.passed()
    reaches(world, job, 4)
    ends(world, job, State.SUCCEEDED)
    assert world.store.get(job).attempt == 2
    assert world.clock.passed() - begun < 60.0


def test_another_replica_gives_them_their_time_too(world: Simulation) -> None:
    """It can't know for how long the one before has seen the other head."""
    world.orphans_live_s = lambda timeout: (timeout + 2.9,)
    job = submit_elsewhere(world)
    reaches(world, job, 2)
    world.kill_head()
    world.start_head()
    world.tick()
    world.set_clock(3600.0)
    world.tick(1)
    world.books.check()
    ends(world, job, State.SUCCEEDED)


def test_who_waits_for_a_gpu_holds_nobody_up(world: Simulation) -> None:
    """While no node has one; more wait so than are looked at in one tick."""
    for _ in range(8):
        world.submit_for_gpu()
    behind = [submit(world) for _ in range(3)]
    for job in behind:
        ends(world, job, State.SUCCEEDED)
    assert len(world.unsettled()) == 8
    assert world.settle() == 0
