"""A stage for the crash points: real processes and databases; Ray and MLflow served in memory."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proofs.books import Books
from proofs.processes import Child, DiedError, Nursery
from service.queue.job import AnySpec, Job, Kind, State
from service.queue.store import Store
from service.testing.checkpoints import newest_of
from service.testing.clock import FakeClock
from service.testing.mlflow import FakeMlflow
from service.testing.mlflow_server import serve_mlflow
from service.testing.ray import KILLED, FakeRay, Submission
from service.testing.ray_server import serve_ray
from service.testing.worker import Commit, Start
from workers.attempt import AttemptFolder
from workers.crash import POINT_VARIABLE, TRACE_VARIABLE
from workers.search_specs import SearchSpec

START = 1_900_000_000.0
Habits = dict[str, Any]


@dataclass
class Played:
    """A worker in a process of its own."""

    stage: "Stage"
    child: Child
    job: str
    attempt: int
    number: int
    done: bool = False
    exit_code: int | None = None
    start: Start | None = None
    """Known once it has told where it begins."""

    def act(self) -> None:
        """Let it do the next little thing."""
        left = self.stage.left.get(self.job, 0)
        try:
            told = self.stage.ask(self.child, "act")
        except DiedError:
            self.stage.note_kill(self.child)
            self._look_at_checkpoints(left)
            self._is_gone(KILLED)
            return
        self._look_at_checkpoints(left)
        self.done = told["done"]
        if told["exit_code"] is not None:
            self.child.kill()
            self._is_gone(told["exit_code"])

    def terminate(self) -> None:
        """SIGTERM."""
        if self.exit_code is None:
            self.stage.ask(self.child, "terminate")

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()
        self._is_gone(KILLED)

    def _look_at_checkpoints(self, left: int) -> None:
        """Where it began, when it had found so much, and what it has left since."""
        folder = AttemptFolder(self.stage.storage, self.job, self.attempt)
        progress = folder.read_progress()
        if self.start is None and progress is not None:
            step = progress.resumed.step if progress.resumed else 0
            self.start = Start(self.job, self.attempt, step, left)
            self.stage.starts.append(self.start)
        found = newest_of([folder])
        if found is None:
            return
        step = found.newest_step() or 0
        self.stage.left[self.job] = max(left, step)
        if self.start is not None and step > self.start.step:
            self.stage.gains.add((self.job, self.attempt))

    def _is_gone(self, exit_code: int) -> None:
        if self.exit_code is None:
            self.exit_code = exit_code
            folder = AttemptFolder(self.stage.storage, self.job, self.attempt)
            if (result := folder.read_result()) is not None:
                commit = Commit(
                    self.job, self.attempt, self.number, result.step, result.outcome, False
                )
                self.stage.ledger.append(commit)


@dataclass
class Stage:
    """One world, in which one process may be killed at one point."""

    nursery: Nursery
    store: Store
    database: str
    storage: Path
    crash_point: str | None = None
    """As CAPS_CRASH_POINT; for the first control plane and the first worker."""
    trace: Path | None = None
    ledger: list[Commit] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    gains: set[tuple[str, int]] = field(default_factory=set)
    killed: list[int] = field(default_factory=list)
    """How the processes ended that died in the middle of something."""
    habits: Callable[[int], Habits] = lambda attempt: {}
    """Of the worker of an attempt."""

    def __post_init__(self) -> None:
        self.clock = FakeClock(START)
        self.mlflow = FakeMlflow()
        self.ray = FakeRay(passed=self.clock.passed, spawn=self._spawn)
        self.workers: list[Played] = []
        self.books = Books(self.store, self, self.mlflow, self.ray)
        self._exits = ExitStack()
        self._control: Child | None = None

    def __enter__(self) -> "Stage":
        self._addresses = {
            "ray": self._exits.enter_context(serve_ray(self.ray)),
            "mlflow": self._exits.enter_context(serve_mlflow(self.mlflow)),
        }
        return self

    def __exit__(self, *problem: object) -> None:
        for worker in self.workers:
            worker.child.kill()
        if self._control is not None:
            self._control.kill()
        self._exits.close()

    def living_workers(self) -> list[Played]:
        """Workers that run."""
        return [worker for worker in self.workers if worker.exit_code is None]

    def ask(self, child: Child, do: str, **arguments: Any) -> Any:
        """Have a process do something, at this time."""
        return child.ask(do, self.clock.passed(), self.clock.wall(), **arguments)

    def note_kill(self, child: Child) -> None:
        """A process died by itself: only its crash point may be why."""
        self.killed.append(child.wait())
        self.crash_point = None

    def _environment(self, mine: Callable[[str], bool]) -> dict[str, str]:
        found = {TRACE_VARIABLE: str(self.trace)} if self.trace else {}
        if self.crash_point and mine(self.crash_point.split(":")[1]):
            found[POINT_VARIABLE] = self.crash_point
        return found

    def _spawn(self, submission: Submission) -> Played:
        job, attempt = submission.metadata["caps_job"], int(submission.metadata["caps_attempt"])
        number = len(self.workers) + 1
        child = self.nursery.fork(
            self._environment(lambda name: name.startswith("worker.")),
            role="worker",
            storage=str(self.storage),
            job=job,
            attempt=attempt,
            host="there",
            number=number,
            habits={"steps": 4, "spools": True, **self.habits(attempt)},
        )
        self.workers.append(Played(self, child, job, attempt, number))
        return self.workers[-1]

    # -------------------------------------------------------------------- what scenarios say

    def control(self, do: str, **arguments: Any) -> Any:
        """Ask the control plane; one that dies meanwhile is started again, and asked again."""
        while True:
            if self._control is None:
                self._control = self.nursery.fork(
                    self._environment(lambda name: not name.startswith("worker.")),
                    role="control plane",
                    database=self.database,
                    storage=str(self.storage),
                    **self._addresses,
                )
            try:
                answer = self.ask(self._control, do, **arguments)
            except DiedError:
                self.note_kill(self._control)
                self._control = answer = None
            self.books.check()
            if self._control is not None:
                return answer

    def submit(self, spec: AnySpec) -> str:
        """A job, by a client that repeats itself until it has an answer."""
        kind = Kind.SEARCH if isinstance(spec, SearchSpec) else Kind.TRAIN
        text, key = spec.model_dump_json(), f"key-{len(self.books.keys)}"
        job = str(self.control("add", kind=kind.value, spec=text, key=key))
        self.books.accept(job, key)
        return job

    def job(self, job_id: str) -> Job:
        """As the database has it."""
        return self.store.get(job_id)

    def until(self, reached: Callable[[], bool], seconds: int = 200) -> None:
        """Let time pass until it is so."""
        for _ in range(seconds):
            self.control("tick")
            for worker in self.living_workers():
                worker.act()
            self.books.check()
            if reached():
                return
            self.clock.sleep(1.0)
        raise AssertionError("stuck")

    def until_ended(self, job_id: str) -> None:
        """The job has ended, and its run is closed."""
        self.until(lambda: self.job(job_id).state.terminal and self.job(job_id).run_closed)

    def until_working(self, job_id: str) -> None:
        """The current attempt's worker has told of itself."""

        def working() -> bool:
            job = self.job(job_id)
            folder = AttemptFolder(self.storage, job_id, job.attempt)
            return job.state is State.RUNNING and folder.heartbeat() is not None

        self.until(working)

    def assert_clean(self) -> None:
        """Killed once if it was to be, by SIGKILL; no process is left, no run open or doubled."""
        assert [os.WTERMSIG(status) for status in self.killed] in ([], [signal.SIGKILL])
        self.until(lambda: not self.living_workers())
        assert not [s.id for s in self.ray.submissions.values() if s.status.alive]
        by_job: dict[str, list[Any]] = {}
        for run in self.mlflow.runs.values():
            by_job.setdefault(run.tags["caps.job"], []).append(run)
            assert run.status != "RUNNING"
            steps = sorted(point[3] for point in run.points)
            assert steps == sorted(set(steps)), f"a point is there twice: {steps}"
        assert all(len(runs) == 1 for runs in by_job.values()), json.dumps(
            {job: len(runs) for job, runs in by_job.items()}
        )
