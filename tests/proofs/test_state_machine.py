"""Whatever users do, workers do and whatever fails, in any order: the promise holds.

Hypothesis chooses the steps, and shortens what it finds to the few that are needed. The world is
that of `simulation`: the real store and reconciler; Ray, MLflow, workers and time are played.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proofs.simulation import POISONS, LockLosing, Simulation
from workers.attempt import Reason

pytestmark = pytest.mark.parametrize("simulated_store", ["sqlite", "postgresql"], indirect=True)

INDEX = st.integers(0, 99)
"""Stands for one of however many there are."""
DEATH = st.none() | st.integers(1, 20)
"""The crash point at which the process dies, if at all."""
A_WRITE = st.none() | st.integers(1, 6)


class Machine(RuleBasedStateMachine):
    """The steps."""

    def __init__(self, store: LockLosing, folder: Path) -> None:
        super().__init__()
        self.world = Simulation(store, folder, seed=0)
        self._patched = self.world.patched()
        self._patched.__enter__()

    @initialize(seed=INDEX)
    def habits(self, seed: int) -> None:
        """How the workers are."""
        self.world.random.seed(seed)

    def teardown(self) -> None:
        """All faults end; then every job reaches its end."""
        try:
            assert self.world.settle() == 0, f"stuck: {self.world.unsettled()}"
        finally:
            self._patched.__exit__(None, None, None)

    @invariant()
    def the_promise_holds(self) -> None:
        """See `books`."""
        self.world.books.check()

    # ------------------------------------------------------------------------------- users

    @rule(death=DEATH)
    def submit(self, death: int | None) -> None:
        self.world.submit(kill_at=death)

    @rule(number=st.integers(0, len(POISONS) - 1))
    def submit_poison(self, number: int) -> None:
        self.world.submit_poison(number)

    @rule()
    def submit_for_gpu(self) -> None:
        self.world.submit_for_gpu()

    @rule(number=st.integers(0, 3), death=DEATH)
    def submit_with_a_key(self, number: int, death: int | None) -> None:
        self.world.submit(f"key-{number}", kill_at=death)

    def _a_job(self, index: int) -> str:
        jobs = list(self.world.books.jobs)
        return jobs[index % len(jobs)]

    def _some_job(self) -> bool:
        return bool(self.world.books.jobs)

    @precondition(_some_job)
    @rule(index=INDEX, death=DEATH)
    def pause(self, index: int, death: int | None) -> None:
        self.world.pause(self._a_job(index), death)

    @precondition(_some_job)
    @rule(index=INDEX, death=DEATH)
    def resume(self, index: int, death: int | None) -> None:
        self.world.resume(self._a_job(index), death)

    @precondition(_some_job)
    @rule(index=INDEX, death=DEATH)
    def cancel(self, index: int, death: int | None) -> None:
        self.world.cancel(self._a_job(index), death)

    @precondition(_some_job)
    @rule(index=INDEX, death=DEATH)
    def retry(self, index: int, death: int | None) -> None:
        self.world.retry(self._a_job(index), death)

    @precondition(_some_job)
    @rule(index=INDEX, death=DEATH)
    def delete(self, index: int, death: int | None) -> None:
        self.world.delete(self._a_job(index), death)

    # ----------------------------------------------------------------------- control plane

    @rule(replica=st.integers(0, 1), death=DEATH)
    def tick(self, replica: int, death: int | None) -> None:
        self.world.tick(replica, death)

    @rule(seconds=st.sampled_from((1.0, 4.0)))
    def look_for_a_while(self, seconds: float) -> None:
        for replica in (0, 1, 0):
            self.world.tick(replica)
            self.world.books.check()
            self.world.work_all()
            self.world.clock.sleep(seconds)

    @precondition(_some_job)
    @rule(point=st.integers(1, 20), index=INDEX, verb=st.sampled_from(("cancel", "pause")))
    def tick_while_a_user_acts(self, point: int, index: int, verb: str) -> None:
        job = self._a_job(index)
        self.world.tick_with(point, lambda: getattr(self.world, verb)(job))

    @rule(point=st.integers(1, 20))
    def a_replica_sleeps(self, point: int) -> None:
        self.world.stall(point)

    # ----------------------------------------------------------------------------- workers

    def _some_worker(self) -> bool:
        return bool(self.world.alive())

    @precondition(_some_worker)
    @rule(index=INDEX, death=A_WRITE)
    def work(self, index: int, death: int | None) -> None:
        alive = self.world.alive()
        self.world.work(alive[index % len(alive)], death)

    @rule()
    def all_work(self) -> None:
        self.world.work_all()

    @precondition(_some_worker)
    @rule(index=INDEX)
    def a_worker_is_killed(self, index: int) -> None:
        alive = self.world.alive()
        self.world.kill_worker(alive[index % len(alive)])

    @precondition(_some_worker)
    @rule(index=INDEX)
    def a_worker_is_terminated(self, index: int) -> None:
        alive = self.world.alive()
        self.world.terminate(alive[index % len(alive)])

    @precondition(_some_job)
    @rule(index=INDEX)
    def a_checkpoint_is_spoilt(self, index: int) -> None:
        self.world.damage(self._a_job(index))

    @precondition(_some_worker)
    @rule(
        index=INDEX,
        reason=st.sampled_from((Reason.ERROR, Reason.DIVERGED, Reason.OUT_OF_MEMORY)),
    )
    def a_training_fails(self, index: int, reason: Reason) -> None:
        alive = self.world.alive()
        self.world.fail(alive[index % len(alive)], reason)

    @precondition(_some_worker)
    @rule(index=INDEX, how=st.sampled_from(("frozen", "deaf", "lingers")))
    def a_worker_falls_ill(self, index: int, how: str) -> None:
        alive = self.world.alive()
        setattr(alive[index % len(alive)], how, True)

    @precondition(_some_worker)
    @rule(index=INDEX)
    def a_worker_wakes_up(self, index: int) -> None:
        alive = self.world.alive()
        worker = alive[index % len(alive)]
        worker.frozen = worker.deaf = False
        self.world.work(worker)

    # ---------------------------------------------------------------------------- machines

    def _head_lives(self) -> bool:
        return self.world.ray.head_lives

    @precondition(_head_lives)
    @rule(down_s=st.sampled_from((0.0, 3.0, 30.0)))
    def the_head_is_killed(self, down_s: float) -> None:
        self.world.kill_head()
        self.world.clock.sleep(down_s)
        if down_s < 10.0:
            self.world.start_head()

    @precondition(lambda self: not self.world.ray.head_lives)
    @rule()
    def the_head_is_started(self) -> None:
        self.world.start_head()

    @rule(index=INDEX)
    def a_node_dies(self, index: int) -> None:
        nodes = [node for node in self.world.ray.nodes if node.alive]
        self.world.kill_node(nodes[index % len(nodes)])

    @rule(there=st.booleans())
    def a_gpu_comes_or_goes(self, there: bool) -> None:
        if there:
            self.world.gpu_comes()
        else:
            self.world.gpu_goes()

    @rule(reachable=st.booleans())
    def ray_is_away_or_back(self, reachable: bool) -> None:
        self.world.ray.reachable = reachable

    @rule()
    def an_answer_is_lost(self) -> None:
        self.world.ray.answers_to_lose = 1

    @rule(set_clock_s=st.sampled_from((0.0, 0.0, 3600.0, -3600.0)))
    def ray_says_failed_falsely(self, set_clock_s: float) -> None:
        self.world.lie(set_clock_s)

    @rule(away=st.booleans())
    def mlflow_is_away_or_back(self, away: bool) -> None:
        self.world.mlflow.away = away

    @rule(seconds=st.sampled_from((0.5, 2.0, 12.0, 25.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.sleep(seconds)

    @rule(seconds=st.sampled_from((60.0, 3600.0, -60.0, -3600.0)) | st.floats(-3600.0, 86_400.0))
    def the_clock_is_set(self, seconds: float) -> None:
        self.world.set_clock(seconds)


def run(store: LockLosing, folder: Path, examples: int, steps: int, *phases: Phase) -> None:
    chosen = settings(
        phases=(Phase.generate, *phases),
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(lambda: Machine(store, folder), settings=chosen)


@pytest.mark.slow  # what it finds is not shortened: that may take minutes
def test_some_lives(simulated_store: LockLosing, storage: Path) -> None:
    run(simulated_store, storage, 10, 30)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_many_lives(simulated_store: LockLosing, storage: Path) -> None:
    run(simulated_store, storage, 150, 60, Phase.shrink)
