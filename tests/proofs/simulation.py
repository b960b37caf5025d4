"""The control plane on a real database; Ray, MLflow, workers and time are played.

Every step is a method: what users ask, what workers do, what fails. `Killed` is raised at a crash
point where a process is to die in the middle of what it does.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from proofs.books import Books
from service.errors import CapsError, JobConflictError, JobNotFoundError
from service.queue.job import Desired
from service.queue.store import Store
from service.reconciler import ReconcilerLoop, observer, waiting
from service.settings import Settings
from service.testing.clock import FakeClock
from service.testing.cluster import FakeCluster
from service.testing.mlflow import FakeMlflow
from service.testing.ray import FakeNode, FakeRay, Submission
from service.testing.runs import FakeRuns
from service.testing.worker import Fakes, FakeWorker
from workers import crash, liveness
from workers.attempt import Reason
from workers.specs import PRESETS, ResourcesConfig, TrainSpec

START = 1_900_000_000.0
SETTLES_WITHIN_S = 1800.0
"""After the last fault every job has reached its end by then: no rule makes one wait for longer
than 600 s, and few of them follow one another."""
REPLICAS = 2
DEMO = PRESETS["demo"]
ON_GPU = "on-gpu"
"""The name of jobs that ask for a GPU."""
A_GPU = ResourcesConfig(cpus_per_worker=1, gpus_per_worker=1)
A_SMALL_LOOK = {"PAGE": 2, "LOOKED_AT": 3, "ENOUGH_WITHOUT_ROOM": 2}
"""How much of the queue is looked at in a tick: less than there is, as in a long queue."""


@dataclass(frozen=True)
class Poison:
    """Why no attempt of a job comes to its end, and none but the first leaves a new checkpoint."""

    habits: dict[str, Any]
    dies_at_its_end: bool = False
    """Between the last checkpoint and the result."""


POISONS = (
    Poison({"dies_at": 3}),  # later attempts die before their first checkpoint
    Poison({"terminated": True}),  # the node ends at once all that is started there
    Poison({}, dies_at_its_end=True),
)


class Killed(BaseException):
    """SIGKILL, played: nothing catches it."""


class LockLosing(Store):
    """A store whose lock of the tick can be lost, as with a connection that the server cut."""

    lock_lost = False

    def tick_lock(self) -> AbstractContextManager[bool]:
        """The lock, or the belief to have it."""
        return nullcontext(True) if self.lock_lost else super().tick_lock()


class Simulation:
    """One world. Not for use before `patched`."""

    def __init__(self, store: LockLosing, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.folder = folder
        empty(store, folder)
        self.clock = FakeClock(START)
        self.fakes = Fakes(self.clock, folder / "storage")
        self.ray = FakeRay(
            [FakeNode("here", 3), FakeNode("there-1", 2), FakeNode("there-2", 2)],
            passed=self.clock.passed,
            spawn=self._spawn,
            orphan_lives_s=lambda timeout: self.random.choice(self.orphans_live_s(timeout)),
        )
        self.orphans_live_s: Callable[[float], tuple[float, ...]] = lambda timeout: (
            0.0,
            timeout / 2,
            timeout + 2.9,
        )
        """Seconds, one of which is drawn."""
        self.gpu_node: FakeNode | None = None
        """Comes and goes, unlike the others."""
        self.mlflow = FakeMlflow()
        self.settings = Settings(
            home=folder,
            storage=folder / "storage",
            database_url=None,
            mlflow_uri="http://mlflow",
            ray_reconnect_timeout_s=self.ray.reconnect_timeout_s,
        )
        self.replicas = [self._replica() for _ in range(REPLICAS)]
        self.books = Books(store, self.fakes, self.mlflow, self.ray)
        self.habits: dict[str, dict[str, Any]] = {}
        """Of the workers of certain jobs."""
        self.dies_at_its_end: set[str] = set()
        """Jobs whose workers die when all is trained, before they can say so."""
        self.settled_after_s = 0.0
        self.kills: Counter[str] = Counter()
        self.healthy_spawns = False
        self.head_chance = 0.04
        self.keys: dict[str, TrainSpec] = {}
        self.log: list[str] = []
        self._acting: FakeWorker | None = None
        self._points_left: int | None = None
        self._at_point: Callable[[], None] | None = None

    @contextmanager
    def patched(self) -> Iterator["Simulation"]:
        """Let the service see this world's processes, clock and crashes."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(liveness, "living", self.fakes.living)
            patch.setattr(liveness, "elsewhere", self.fakes.elsewhere)
            patch.setattr(liveness, "kill", self.fakes.kill)
            times = SimpleNamespace(time=self.clock.wall, monotonic=self.clock.passed)
            patch.setattr(observer, "time", times)
            patch.setattr(crash, "reached", self._reached)
            for name, number in A_SMALL_LOOK.items():
                patch.setattr(waiting, name, number)
            yield self

    def _replica(self) -> ReconcilerLoop:
        return ReconcilerLoop(
            self.store,
            FakeCluster(self.ray),
            FakeRuns(self.mlflow),
            self.settings,
            now=self.clock.wall,
        )

    def _spawn(self, submission: Submission) -> FakeWorker:
        assert submission.node is not None
        habits: dict[str, Any] = {"steps": self.random.randint(2, 6)}
        if not self.healthy_spawns:
            habits["deaf"] = self.random.random() < 0.1
            habits["lingers"] = self.random.random() < 0.1
            if self.random.random() < 0.3:
                habits["starts_at"] = self.clock.passed() + self.random.uniform(0.0, 12.0)
        job, attempt = submission.metadata["caps_job"], int(submission.metadata["caps_attempt"])
        habits |= self.habits.get(job, {})
        host = submission.node.id.partition("/")[0]
        return self.fakes.start(job, attempt, host, **habits)

    # ------------------------------------------------------------------------- crash points

    def _reached(self, point: str) -> None:
        worker = self._acting if point == "before:worker.result" else None
        if worker and worker.job in self.dies_at_its_end and worker.step >= worker.steps:
            self._kill()
        if self._points_left is None:
            return
        self._points_left -= 1
        if self._points_left > 0:
            return
        self._points_left = None
        action, self._at_point = self._at_point, None
        self.note(f"at {point}")
        assert action is not None
        action()

    @contextmanager
    def at_point(self, number: int, action: Callable[[], None]) -> Iterator[None]:
        """Have something happen at the n-th crash point that is reached in the block."""
        self._points_left, self._at_point = number, action
        try:
            yield
        finally:
            self._points_left, self._at_point = None, None

    def note(self, line: str) -> None:
        """For whoever must find out what happened."""
        self.log.append(f"{self.clock.passed():9.1f} {line}")

    # --------------------------------------------------------------------------- the users

    def submit(
        self, key: str | None = None, kill_at: int | None = None, spec: TrainSpec | None = None
    ) -> str | None:
        """A job comes; None where the API was killed before it could answer."""
        spec = (self.keys.get(key) if key else None) or spec or self._spec()
        if key:
            self.keys[key] = spec
        made: list[str] = []

        def call() -> None:
            made.append(self.store.add(spec, idempotency_key=key).id)

        self._user_call(call, kill_at)
        if made:
            self.note(f"submitted {made[0]}, key {key}")
            self.books.accept(made[0], key)
        return made[0] if made else None

    def submit_for_gpu(self) -> None:
        """A job comes that waits for a node with a GPU, ahead of most others."""
        asked = {"name": ON_GPU, "resources": A_GPU, "priority": 5}
        self.submit(spec=self._spec().model_copy(update=asked))

    def queue_for_gpu(self) -> None:
        """No node has a GPU, and more wait for one than are looked at in one tick; one behind."""
        self.gpu_goes()
        for _ in range(A_SMALL_LOOK["LOOKED_AT"] + 1):
            self.submit_for_gpu()
        self.submit()

    def submit_poison(self, number: int) -> str | None:
        """A job comes that no attempt can bring to its end."""
        if (job_id := self.submit()) is not None:
            self.note(f"{job_id} is poison {number}")
            self.habits[job_id] = {"steps": 6, **POISONS[number].habits}
            if POISONS[number].dies_at_its_end:
                self.dies_at_its_end.add(job_id)
        return job_id

    def _spec(self) -> TrainSpec:
        draw = self.random
        return DEMO.model_copy(
            update={
                "max_retries": draw.choice((0, 1, 2)),
                "max_runtime_s": draw.choice((None, None, None, 60, 600)),
                "priority": draw.choice((0, 0, 5)),
                "resources": ResourcesConfig(cpus_per_worker=1),
            }
        )

    def pause(self, job_id: str, kill_at: int | None = None) -> None:
        """A user pauses."""
        self._user_call(lambda: self.store.set_desired(job_id, Desired.PAUSE), kill_at)

    def resume(self, job_id: str, kill_at: int | None = None) -> None:
        """A user resumes."""
        self._user_call(lambda: self.store.set_desired(job_id, Desired.RUN), kill_at)

    def cancel(self, job_id: str, kill_at: int | None = None) -> None:
        """A user cancels."""
        self._user_call(lambda: self.store.set_desired(job_id, Desired.CANCEL), kill_at)

    def retry(self, job_id: str, kill_at: int | None = None) -> None:
        """A user has it tried again."""
        self._user_call(lambda: self.store.retry(job_id), kill_at)

    def delete(self, job_id: str, kill_at: int | None = None) -> None:
        """A user deletes."""
        self._user_call(lambda: self.store.request_delete(job_id), kill_at)
        self.books.check()  # before its rows are gone

    def _user_call(self, call: Callable[[], Any], kill_at: int | None) -> None:
        try:
            with self.at_point(kill_at, self._kill) if kill_at else nullcontext():
                call()
        except (JobConflictError, JobNotFoundError) as error:
            self.note(f"refused: {error}")
        except CapsError as error:  # a key whose job was deleted
            self.note(f"refused: {error}")
        except Killed:
            self.kills["api"] += 1

    def _kill(self) -> None:
        raise Killed

    # -------------------------------------------------------------------- the control plane

    def tick(self, replica: int = 0, kill_at: int | None = None) -> None:
        """A replica looks; killed at its n-th crash point, it starts anew."""
        self.note(f"tick of {replica}, killed at {kill_at}")
        try:
            with self.at_point(kill_at, self._kill) if kill_at else nullcontext():
                self.replicas[replica].tick()
        except Killed:
            self.kills["control plane"] += 1
            self.replicas[replica] = self._replica()

    def tick_with(self, number: int, action: Callable[[], None]) -> None:
        """Something happens while a replica is in the middle of its tick."""
        self.note(f"tick of 0 with {action} at {number}")
        with self.at_point(number, action):
            self.replicas[0].tick()

    def stall(self, number: int) -> None:
        """A replica sleeps in the middle of its tick, loses the lock, and another one works on.

        The first one wakes up and goes on with what it saw before.
        """

        def meanwhile() -> None:
            self.store.lock_lost = True
            try:
                for _ in range(4):
                    self.replicas[1].tick()
                    self.books.check()
                    self.work_all()
                    self.clock.sleep(4.0)
            finally:
                self.store.lock_lost = False

        self.books.strict = False
        self.tick_with(number, meanwhile)

    # --------------------------------------------------------------------------- the workers

    def alive(self) -> list[FakeWorker]:
        """Processes that run, wherever."""
        return list(self.fakes.living_workers())

    def work(self, worker: FakeWorker, kill_at: int | None = None) -> None:
        """A process does its next little thing; killed at its n-th write."""
        try:
            self._acting = worker
            with self.at_point(kill_at, self._kill) if kill_at else nullcontext():
                worker.act()
        except Killed:
            self.kills["worker"] += 1
            worker.kill()
        finally:
            self._acting = None

    def work_all(self) -> None:
        """Every process does its next little thing."""
        for worker in self.alive():
            self.work(worker)

    def kill_worker(self, worker: FakeWorker) -> None:
        """SIGKILL."""
        self.note(f"kill {worker}")
        self.kills["worker"] += 1
        worker.kill()

    def fail(self, worker: FakeWorker, reason: Reason) -> None:
        """The training fails."""
        if worker.begun and not worker.frozen:
            self.note(f"{worker} fails: {reason}")
            worker.leave("failed", reason, "an error")

    def terminate(self, worker: FakeWorker) -> None:
        """SIGTERM: its node is wanted back."""
        self.note(f"terminate {worker}")
        worker.terminate()

    def damage(self, job_id: str) -> None:
        """The newest checkpoint of a job is spoilt on the disk."""
        if self.fakes.damage(job_id):
            self.note(f"the newest checkpoint of {job_id} is spoilt")

    # ------------------------------------------------------------------------- the machines

    def kill_head(self) -> None:
        """The head dies."""
        self.note("head killed")
        self.kills["head"] += 1
        self.books.lose_head()
        self.ray.kill_head()

    def start_head(self) -> None:
        """A new one is there. Machines that are gone do not come back with it."""
        self.note("head started")
        self.ray.nodes = [node for node in self.ray.nodes if node.alive]
        self.ray.start_head()

    def kill_node(self, node: FakeNode) -> None:
        """A machine dies; another one takes its place."""
        self.note(f"node {node.id} killed")
        self.kills["node"] += 1
        self.ray.kill_node(node)
        fresh = self.ray.replace_node(node)
        if node is self.gpu_node:
            self.gpu_node = fresh

    def gpu_comes(self) -> None:
        """A machine with a GPU joins, unless there is one."""
        if self.gpu_node is None:
            self.note("a node with a GPU joins")
            self.gpu_node = FakeNode(f"gpu/{len(self.log)}", cpus=2, gpus=1.0)
            self.ray.nodes.append(self.gpu_node)

    def gpu_goes(self) -> None:
        """That machine dies, and none takes its place."""
        if self.gpu_node is not None:
            self.note(f"node {self.gpu_node.id} killed, and not replaced")
            self.kills["node"] += 1
            self.ray.kill_node(self.gpu_node)
            self.gpu_node = None

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock, which is the database's too. Replicas see time pass."""
        self.note(f"clock set by {seconds:.0f} s")
        self.clock.set_by(seconds)

    def lie(self, set_clock_s: float = 0.0) -> None:
        """The head says FAILED of a job that runs, for a moment: for less than CONFIRM_S.

        Meanwhile somebody may set the clock.
        """
        running = [s for s in self.ray.submissions.values() if s.lives]
        if not running or not (self.ray.reachable and self.ray.head_lives):
            return
        submission = self.random.choice(running)
        self.note(f"FAILED falsely: {submission.id}")
        submission.failed_falsely = True
        for seconds in (2.0, 0.0):
            self.tick()
            self.books.check()
            self.clock.sleep(seconds)
            if set_clock_s:
                self.set_clock(set_clock_s)
                set_clock_s = 0.0
        submission.failed_falsely = False
        self.tick()

    # ------------------------------------------------------------------------------ the end

    def settle(self) -> int:
        """All faults end; the number of jobs that reach no end all the same.

        Where no node has a GPU, first those have to reach it that need none.
        """
        self.note("all faults end")
        if not self.ray.head_lives:
            self.start_head()
        self.ray.reachable, self.ray.answers_to_lose = True, 0
        self.mlflow.away = False
        self.healthy_spawns = True
        for worker in self.alive():
            worker.frozen = worker.deaf = worker.lingers = False
        if self.gpu_node is None and (stuck := self._settle(but=ON_GPU)):
            return stuck
        self.gpu_comes()
        return self._settle()

    def _settle(self, but: str = "") -> int:
        """Let time pass until all jobs but those of a name have settled; how many do not."""
        begun, round = self.clock.passed(), 0
        while (after_s := self.clock.passed() - begun) < SETTLES_WITHIN_S:
            self.tick(round % REPLICAS)
            self.work_all()
            self.books.check()
            if not (self.unsettled(but) or self.alive()):
                self.settled_after_s = max(self.settled_after_s, after_s)
                return 0
            self.clock.sleep(1.0 if after_s < 150.0 else 5.0)
            round += 1
        return len(self.unsettled(but)) or len(self.alive())

    def unsettled(self, but: str = "") -> list[Any]:
        """Jobs that have not reached where they are to stay, or are not cleared away."""
        unsettled = text(
            "SELECT id, name, state, desired, attempt, waiting_reason, run_closed FROM jobs "
            "WHERE name != :but AND NOT ("
            "(state = 'PAUSED' AND desired = 'pause') OR (state IN ('SUCCEEDED', 'FAILED', "
            "'CANCELLED') AND desired != 'delete' AND (run_id IS NULL OR run_closed)))"
        )
        with self.store.engine.connect() as connection:
            return list(connection.execute(unsettled, {"but": but}))


def empty(store: Store, folder: Path) -> None:
    """No jobs, and no folders of any."""
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
        connection.execute(text("DELETE FROM events"))
        connection.execute(text("DELETE FROM idempotency_keys"))
    shutil.rmtree(folder / "storage", ignore_errors=True)
