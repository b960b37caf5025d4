"""Processes of every kind are killed, thousands of times; no accepted job pays for it.

Rounds of a few hundred kills, each in a world of its own and from a seed of its own, so that a
round that fails can be played again alone. After each round all faults end, and every job has to
reach its end.
"""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from proofs.simulation import POISONS, LockLosing, Simulation
from service.queue.job import State
from workers.attempt import Reason

SEED = 20_000
KILLS_A_ROUND = 250
JOBS_AT_ONCE = 8
FOR_GPU = 0.15
"""The share of jobs that ask for a GPU, while such a node comes and goes."""
CLOCK_STEPS_S = (60.0, 3600.0, 86_400.0, -60.0, -3600.0)

pytestmark = pytest.mark.parametrize("simulated_store", ["sqlite", "postgresql"], indirect=True)


@pytest.mark.slow
def test_hundreds_of_kills(simulated_store: LockLosing, storage: Path) -> None:
    kill_loop(simulated_store, storage, kills=250, a_round=50)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_ten_thousand_kills(simulated_store: LockLosing, storage: Path) -> None:
    kill_loop(simulated_store, storage, kills=10_000, a_round=KILLS_A_ROUND)


def kill_loop(
    store: LockLosing, folder: Path, kills: int, a_round: int, head_chance: float = 0.04
) -> None:
    """Rounds until there were so many kills; then the counts, all of which must be 0."""
    begun = time.monotonic()
    killed: Counter[str] = Counter()
    breaches: Counter[str] = Counter()
    jobs, number, given_up, slowest_s = 0, 0, 0, 0.0
    while killed.total() < kills:
        world = Simulation(store, folder, SEED + number)
        world.head_chance = head_chance
        try:
            play(world, a_round, number)
        except AssertionError as error:
            tail = "\n".join(world.log[-60:])
            raise AssertionError(f"round {number}: {error}\n{tail}") from error
        killed += world.kills
        breaches += world.books.counts
        jobs += len(world.books.jobs)
        given_up += len(world.books.work.given_up)
        slowest_s = max(slowest_s, world.settled_after_s)
        number += 1
    print(
        f"\n{store.engine.dialect.name}: {jobs} jobs, {killed.total()} kills {dict(killed)} in "
        f"{number} rounds and {time.monotonic() - begun:.0f} s; "
        + ", ".join(
            f"{kind} {breaches[kind]}" for kind in ("lost", "double commit", "stale commit")
        )
        + f", stuck {breaches['stuck']}; {given_up} poison jobs given up; all settled within "
        f"{slowest_s:.0f} s"
    )
    assert not breaches
    assert given_up, "no poison job was played to its end"


def play(world: Simulation, kills: int, number: int) -> None:
    """One round. Every fourth also sets the clock, every fourth has replicas that sleep.

    At the end of every third there is a queue for a GPU that no node has.
    """
    with world.patched():
        for poison in range(len(POISONS)):
            world.submit_poison(poison)
        while world.kills.total() < kills:
            step(world, sets_clock=number % 4 == 1, stalls=number % 4 == 3)
            world.books.check()
        if number % 3 == 2:
            world.queue_for_gpu()
        stuck = world.settle()
        world.books.counts["stuck"] += stuck
        assert stuck == 0, f"stuck: {world.unsettled()}, alive: {world.alive()}"
        assert_clean(world)


def assert_clean(world: Simulation) -> None:
    """Nothing is left that holds a slot, and every run is closed as its job ended."""
    assert not [s.id for s in world.ray.submissions.values() if s.status.alive]
    closed = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
    for job_id, entry in world.books.jobs.items():
        runs = world.books.runs_of(job_id)
        if world.books.strict:  # two that make it at the same moment make two
            assert len(runs) <= 1, f"job {job_id} has {len(runs)} runs"
        if State(entry.state).terminal:
            assert "RUNNING" not in runs, f"job {job_id} is {entry.state}, of its runs {runs}"
        if len(runs) == 1 and State(entry.state).terminal:
            assert runs == [closed[entry.state]], f"job {job_id} is {entry.state}, its run {runs}"


def step(world: Simulation, sets_clock: bool, stalls: bool) -> None:
    """Whatever comes next, with some time in between."""
    draw = world.random
    world.clock.sleep(draw.choice((0.0, 0.3, 1.0, 1.0, 2.0, 5.0, 20.0)))
    recover(world)
    users(world)
    faults(world, sets_clock, stalls)
    for worker in world.alive():
        world.work(worker, kill_at=maybe(draw, 0.12, 6))
    replica = draw.randrange(len(world.replicas))
    world.tick(replica, kill_at=maybe(draw, 0.6, 14))


def maybe(draw: random.Random, chance: float, most: int) -> int | None:
    """The number of the crash point at which to die, or None to live on."""
    return draw.randint(1, most) if draw.random() < chance else None


def recover(world: Simulation) -> None:
    """What was broken is mended some time."""
    draw = world.random
    if not world.ray.head_lives and draw.random() < 0.3:
        world.start_head()
    if not world.ray.reachable and draw.random() < 0.3:
        world.ray.reachable = True
    if world.mlflow.away and draw.random() < 0.2:
        world.mlflow.away = False
    if world.gpu_node is None and draw.random() < 0.05:
        world.gpu_comes()


def users(world: Simulation) -> None:
    """Jobs come, and users change their minds."""
    draw = world.random
    entries = world.books.jobs.items()
    open_jobs = [id for id, e in entries if e.state in ("QUEUED", "RUNNING", "PAUSED")]
    ended = [id for id, e in entries if e.state in ("FAILED", "CANCELLED") and not e.deleted]
    if len(open_jobs) < JOBS_AT_ONCE:
        key = f"key-{len(world.keys)}" if draw.random() < 0.3 else None
        if key is None and world.keys and draw.random() < 0.1:
            key = draw.choice(list(world.keys))  # a client that has not heard the answer
        if key is None and draw.random() < FOR_GPU:
            world.submit_for_gpu()
        else:
            world.submit(key, kill_at=maybe(draw, 0.1, 2))
    if open_jobs and draw.random() < 0.15:
        verb = draw.choice((world.pause, world.resume, world.resume, world.cancel))
        verb(draw.choice(open_jobs), kill_at=maybe(draw, 0.2, 2))
    for job_id, entry in entries:
        if entry.state == "PAUSED" and draw.random() < 0.1:
            world.resume(job_id)
    if ended and draw.random() < 0.1:
        draw.choice((world.retry, world.retry, world.delete))(draw.choice(ended))


def faults(world: Simulation, sets_clock: bool, stalls: bool) -> None:
    """Something breaks, or nothing."""
    draw = world.random
    alive = world.alive()
    if alive and draw.random() < 0.25:
        world.kill_worker(draw.choice(alive))
    if alive and draw.random() < 0.03:
        world.terminate(draw.choice(alive))
    waiting = [id for id, e in world.books.jobs.items() if e.state != "RUNNING" and not e.deleted]
    if waiting and draw.random() < 0.05:
        world.damage(draw.choice(waiting))
    if alive and draw.random() < 0.05:
        world.fail(draw.choice(alive), draw.choice((Reason.ERROR, Reason.DIVERGED)))
    if alive and draw.random() < 0.03:
        draw.choice(alive).frozen = True
    if world.ray.head_lives and draw.random() < world.head_chance:
        world.kill_head()
    if world.ray.head_lives and draw.random() < 0.04:
        world.kill_node(draw.choice([node for node in world.ray.nodes if node.alive]))
    if world.ray.head_lives and draw.random() < 0.03:
        world.gpu_goes()
    if draw.random() < 0.03:
        world.ray.reachable = False
    if draw.random() < 0.05:
        world.ray.answers_to_lose = 1
    if draw.random() < 0.03:
        world.mlflow.away = True
    if draw.random() < 0.03:
        world.lie(draw.choice(CLOCK_STEPS_S) if sets_clock else 0.0)
    outlived = world.ray.head_lives and world.ray.orphans  # the clock may not prove their death
    if sets_clock and draw.random() < (0.3 if outlived else 0.03):
        world.set_clock(draw.choice(CLOCK_STEPS_S))
    if stalls and draw.random() < 0.05:
        world.stall(draw.randint(1, 12))
