"""A process is killed by SIGKILL before and after every commit, every call and every document.

Each scenario is played undisturbed first, with a trace of the points that it reaches. Then it is
played again for each of them: the process dies there, another one goes on, and all ends as it did.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proofs.processes import Nursery
from proofs.simulation import LockLosing, empty
from proofs.stage import Habits, Stage
from service.queue.job import State
from support.searches import SEARCH
from workers.crash import POINTS
from workers.search_specs import SearchSpec
from workers.specs import PRESETS, ResourcesConfig

DEMO = PRESETS["demo"].model_copy(update={"resources": ResourcesConfig(cpus_per_worker=1)})
A_SEARCH = SearchSpec.model_validate(SEARCH, strict=False)


def finishes(stage: Stage) -> str:
    """From queue to success."""
    job = stage.submit(DEMO)
    stage.until_ended(job)
    return job


def is_cancelled(stage: Stage) -> str:
    """A worker that hears nothing is asked, signalled and killed."""
    job = stage.submit(DEMO)
    stage.until_working(job)
    stage.control("desire", job=job, desired="cancel")
    stage.until_ended(job)
    return job


def is_retried(stage: Stage) -> str:
    """An error, another one without retries left, and the user's own retry."""
    job = stage.submit(DEMO.model_copy(update={"max_retries": 1}))
    stage.until_ended(job)
    if stage.job(job).state is State.FAILED:
        stage.control("retry", job=job)
        stage.until_ended(job)
    return job


def loses_its_worker(stage: Stage) -> str:
    """It dies without a word."""
    return finishes(stage)


def loses_the_head(stage: Stage) -> str:
    """The head dies, and its orphans some time later."""
    job = stage.submit(DEMO)
    stage.until_working(job)
    stage.books.lose_head()
    stage.ray.kill_head()
    stage.control("tick")
    stage.ray.start_head()
    stage.until_ended(job)
    return job


def is_paused(stage: Stage) -> str:
    """And resumed."""
    job = stage.submit(DEMO)
    stage.until_working(job)
    stage.control("desire", job=job, desired="pause")
    stage.until(lambda: stage.job(job).state is State.PAUSED)
    stage.control("desire", job=job, desired="run")
    stage.until_ended(job)
    return job


def is_deleted(stage: Stage) -> str:
    """With its folder."""
    job = finishes(stage)
    stage.control("delete", job=job)
    stage.until(lambda: not stage.store.current([job]))
    assert not (stage.storage / "jobs" / job).exists()
    return job


def is_deleted_before_mlflow_knows(stage: Stage) -> str:
    """MLflow is away when the job ends, and when its user has it deleted."""
    job = stage.submit(DEMO)
    stage.until_working(job)
    stage.mlflow.away = True
    stage.control("desire", job=job, desired="cancel")
    stage.until(lambda: stage.job(job).state.terminal)
    stage.control("delete", job=job)
    stage.control("tick")
    assert stage.books.runs_of(job) == ["RUNNING"]
    assert (stage.storage / "jobs" / job).exists()
    stage.mlflow.away = False
    stage.until(lambda: not stage.store.current([job]))
    assert stage.books.runs_of(job) == ["KILLED"]
    assert not (stage.storage / "jobs" / job).exists()
    return job


def is_searched_again(stage: Stage) -> str:
    """A search fails, and its user has it go on."""
    job = stage.submit(A_SEARCH)
    stage.until_ended(job)
    if stage.job(job).state is State.FAILED:
        stage.control("reopen", job=job)
        stage.until_ended(job)
    return job


def healthy(attempt: int) -> Habits:
    return {"together": True}


def deaf(attempt: int) -> Habits:
    return {"deaf": True}


def failing_twice(attempt: int) -> Habits:
    return {"fails_at": 4} if attempt <= 2 else {}


def failing_once(attempt: int) -> Habits:
    return {"fails_at": 3} if attempt == 1 else {}


def dying_once(attempt: int) -> Habits:
    return {"dies_at": 3} if attempt == 1 else {}


def slow(attempt: int) -> Habits:
    return {"steps": 12}


SCENARIOS: dict[str, tuple[Callable[[Stage], str], Callable[[int], Habits], State | None]] = {
    "finishes": (finishes, healthy, State.SUCCEEDED),
    "is cancelled": (is_cancelled, deaf, State.CANCELLED),
    "is retried": (is_retried, failing_twice, State.SUCCEEDED),
    "loses its worker": (loses_its_worker, dying_once, State.SUCCEEDED),
    "loses the head": (loses_the_head, slow, State.SUCCEEDED),
    "is paused": (is_paused, slow, State.SUCCEEDED),
    "is deleted": (is_deleted, healthy, None),
    "is deleted early": (is_deleted_before_mlflow_knows, slow, None),
    "is searched again": (is_searched_again, failing_once, State.SUCCEEDED),
}
"""What happens, the workers' habits, and how the job ends; None where it is forgotten."""


@dataclass
class Theatre:
    """Where scenarios are played."""

    nursery: Nursery
    store: LockLosing
    database: str
    folder: Path
    traces: dict[str, list[str]] = field(default_factory=dict)
    """The points of each undisturbed scenario, in order, each with its time: `before:x:2`."""
    kills: Counter[str] = field(default_factory=Counter)

    def play(self, name: str, crash_point: str | None = None, trace: Path | None = None) -> None:
        """Once; raises AssertionError unless it ends as it should."""
        act, habits, end = SCENARIOS[name]
        empty(self.store, self.folder)
        if trace is None:  # a point's times are counted over all processes of the play
            trace = self.folder / "replay"
            trace.write_text("")
        storage = self.folder / "storage"
        stage = Stage(self.nursery, self.store, self.database, storage, crash_point, trace)
        stage.habits = habits
        with stage:
            job = act(stage)
            stage.assert_clean()
            assert (crash_point is None) == (not stage.killed), "the point was not reached"
            assert end is None or stage.job(job).state is end
        self.kills["worker" if crash_point and ":worker." in crash_point else "control"] += bool(
            crash_point
        )

    def trace_of(self, name: str) -> list[str]:
        """The points that the undisturbed scenario reaches."""
        if name not in self.traces:
            file = self.folder / "trace"
            file.write_text("")
            self.play(name, trace=file)
            times: Counter[str] = Counter()
            self.traces[name] = []
            for point in file.read_text().split():
                times[point] += 1
                self.traces[name].append(f"{point}:{times[point]}")
        return self.traces[name]


@pytest.fixture(scope="module")
def nursery(storage: Path) -> Iterator[Nursery]:
    found = Nursery(storage)
    yield found
    found.close()


@pytest.fixture(scope="module")
def theatre(nursery: Nursery, simulated_store: LockLosing, storage: Path) -> Theatre:
    database = simulated_store.engine.url.render_as_string(hide_password=False)
    nursery.warm(database, storage / "storage")
    return Theatre(nursery, simulated_store, database, storage)


ON_SQLITE = pytest.mark.parametrize("simulated_store", ["sqlite"], indirect=True, scope="module")
ON_BOTH = pytest.mark.parametrize(
    "simulated_store", ["sqlite", "postgresql"], indirect=True, scope="module"
)


@pytest.mark.slow
@ON_SQLITE
def test_the_scenarios_reach_every_point(theatre: Theatre) -> None:
    """So that none is forgotten: a new point needs a scenario that goes there."""
    reached = {point.rpartition(":")[0] for name in SCENARIOS for point in theatre.trace_of(name)}
    assert reached == {f"{when}:{name}" for when in ("before", "after") for name in POINTS}


@pytest.mark.slow
@ON_SQLITE
def test_killed_once_at_every_point(theatre: Theatre) -> None:
    """Every point of the table, in the first scenario that goes there."""
    played: set[str] = set()
    for name in SCENARIOS:
        for point in theatre.trace_of(name):
            where = point.rpartition(":")[0]
            if where not in played:
                played.add(where)
                theatre.play(name, point)
    assert len(played) == 2 * len(POINTS)
    print(f"\n{theatre.kills.total()} kills {dict(theatre.kills)}")


@pytest.mark.long
@pytest.mark.timeout(2400)
@ON_BOTH
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_wherever_a_scenario_goes(theatre: Theatre, name: str) -> None:
    """Every point: on SQLite each time that it is reached, on PostgreSQL the first time."""
    on_sqlite = theatre.store.engine.dialect.name == "sqlite"
    points = [p for p in theatre.trace_of(name) if on_sqlite or p.endswith(":1")]
    for point in points:
        theatre.play(name, point)
    print(f"\n{name}: {len(points)} kills")
