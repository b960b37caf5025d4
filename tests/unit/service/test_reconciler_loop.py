"""The reconciler's loop on a real store, with Ray and MLflow played in memory.

The worker is played by hand: it reads and writes the attempt's folder as a real one does.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from capsmodel.sidecar import CheckpointInfo, digest_of, step_of, write_sidecar
from service import reconcile as decide
from service.cluster import ClusterSeen, Node, RayJob, RayStatus
from service.demand import DRIVER, Bundle
from service.errors import (
    ClusterUnavailableError,
    JobActiveError,
    JobConflictError,
    JobNotFoundError,
    TrackingUnavailableError,
)
from service.queue.job import Desired, Job, State
from service.queue.store import Store
from service.reconciler import ReconcilerLoop, aftercare, observer, parts, sweeper, waiting
from service.runs import MlflowRuns
from service.settings import Settings
from support.searches import SEARCH
from workers import liveness
from workers.attempt import (
    AttemptFolder,
    CheckpointRef,
    ProcessRecord,
    Progress,
    Reason,
    Result,
    Resumed,
    SearchAttempt,
)
from workers.process import host_id
from workers.search_specs import SearchSpec
from workers.specs import PRESETS, InitFrom, ResourcesConfig
from workers.trials import Trial, TrialState, TrialTable, TrialWriter, trials_file

pytestmark = pytest.mark.parametrize("store", ["sqlite"], indirect=True)


@dataclass
class Ray:
    """A cluster in memory: what was submitted, and how each attempt is."""

    jobs: dict[str, RayStatus] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    """Every call, those that were adopted too."""
    needs: dict[str, Bundle] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    capacity: list[Node] = field(default_factory=lambda: [Node("n1", 8, 0)])
    dead_nodes: list[str] = field(default_factory=list)
    session: str = "s1"
    queue_id: str = ""
    away: bool = False
    breaks_for: str = "nobody"

    def _answer(self) -> None:
        if self.away:
            raise ClusterUnavailableError("Ray does not answer")

    def look(self) -> ClusterSeen:
        self._answer()
        jobs = {
            id: RayJob(status, node_id="n1", queue_id=self.queue_id)
            for id, status in self.jobs.items()
        }
        return ClusterSeen(self.session, jobs, self.capacity, frozenset(self.dead_nodes))

    def submit(
        self, submission_id: str, job: str, attempt: int, need: Bundle, queue_id: str
    ) -> None:
        self._answer()
        if job == self.breaks_for:
            raise RuntimeError("a bug")
        self.submitted.append(submission_id)
        self.needs[submission_id] = need
        self.queue_id = queue_id
        self.jobs.setdefault(submission_id, RayStatus.RUNNING)

    def restart(self) -> None:
        """The head is another one: it knows no job."""
        self.jobs.clear()
        self.session += "'"

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stopped.append(submission_id)
        if submission_id in self.jobs:
            self.jobs[submission_id] = RayStatus.STOPPED


@dataclass
class Runs:
    """MLflow in memory."""

    made: dict[str, str] = field(default_factory=dict)
    closed: dict[str, State] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    away: bool = False
    breaks_for: str = "nobody"

    def ensure(self, job: Job) -> tuple[str, str]:
        if self.away:
            raise TrackingUnavailableError("MLflow does not answer")
        return "e1", self.made.setdefault(job.id, f"run-{len(self.made)}")

    def drop(self, run_id: str) -> None:
        self.dropped.append(run_id)

    def close(self, job: Job, folder: AttemptFolder | None) -> bool:
        if self.away:
            raise TrackingUnavailableError("MLflow does not answer")
        if job.id == self.breaks_for:
            raise RuntimeError("a bug")
        self.closed[job.id] = job.state
        return True


@dataclass
class World:
    """All that a test acts on."""

    store: Store
    ray: Ray
    runs: Runs
    settings: Settings
    loop: ReconcilerLoop

    def add(self, **fields: Any) -> str:
        """Queue a job."""
        return self.store.add(PRESETS["demo"].model_copy(update=fields)).id

    def job(self, job_id: str) -> Job:
        """Its record."""
        return self.store.get(job_id)

    def tick(self, times: int = 1) -> None:
        """Look so many times."""
        for _ in range(times):
            self.loop.tick()

    def folder(self, job_id: str) -> AttemptFolder:
        """That of the current attempt."""
        return AttemptFolder(self.settings.storage_root, job_id, self.job(job_id).attempt)

    def leave(self, job_id: str, outcome: str, reason: Reason, **fields: Any) -> None:
        """The worker writes its result, and its process ends."""
        self.folder(job_id).write_result(Result(outcome=outcome, reason=reason, **fields))
        self.end(job_id, RayStatus.SUCCEEDED)

    def end(self, job_id: str, status: RayStatus) -> None:
        """The worker's process ends."""
        current = self.job(job_id).current
        assert current is not None
        self.ray.jobs[current.submission_id] = status

    def events(self, job_id: str) -> list[str]:
        """Types, in order."""
        return [event.type for event in self.store.events(job_id)]


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    settings = Settings(home=tmp_path, storage=None, database_url=None, mlflow_uri="http://mlflow")
    ray, runs = Ray(), Runs()
    return World(store, ray, runs, settings, ReconcilerLoop(store, ray, runs, settings))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window of time is over at once."""
    for name in ("CONFIRM_S", "STOP_GRACE_S", "EXIT_GRACE_S", "BACKOFF_S", "SESSION_MARGIN_S"):
        monkeypatch.setattr(decide, name, -1.0)
    monkeypatch.setattr(aftercare, "CLOSE_AGAIN_S", 0.0)


# ----------------------------------------------------------------------- one job's life


def test_a_job_from_queue_to_success(world: World) -> None:
    job_id = world.add()
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.run_id, job.waiting_reason) == (State.RUNNING, "run-0", "")
    assert job.current is not None
    assert job.current.submitted_at is not None
    attempt = world.folder(job_id).read_attempt()
    assert (attempt.job, attempt.attempt, attempt.run_id) == (job_id, 1, "run-0")
    assert (attempt.spec, attempt.tracking_uri) == (job.spec, "http://mlflow")

    world.tick()  # it is noted on which node it runs
    job = world.job(job_id)
    world.tick()
    assert world.job(job_id) == job, "nothing changes while it runs"
    world.leave(job_id, "succeeded", Reason.COMPLETED, metrics={"a": 1.0}, evidence="98 %")
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.reason, job.evidence) == (State.SUCCEEDED, Reason.COMPLETED, "98 %")
    assert job.result is not None
    assert job.result["metrics"] == {"a": 1.0}
    assert job.finished_at is not None
    assert job.current is not None
    assert job.current.ended_at is not None
    assert (world.runs.closed, job.run_closed) == ({job_id: State.SUCCEEDED}, True)
    assert world.events(job_id) == ["submitted", "started", "dispatched", "succeeded"]
    assert not (world.folder(job_id).path / "stop").exists()


def test_a_queued_job_is_cancelled_without_a_run(world: World) -> None:
    job_id = world.add()
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    assert world.job(job_id).state is State.CANCELLED
    assert (world.ray.submitted, world.runs.made) == ([], {})
    assert not (world.settings.storage_root / "jobs").exists()


def test_a_cancelled_worker_is_asked_first_and_killed_after_the_grace(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick(2)
    assert world.folder(job_id).stop_requested() == "cancel"
    assert world.ray.stopped == []
    monkeypatch.setattr(decide, "STOP_GRACE_S", -1.0)
    monkeypatch.setattr(decide, "CONFIRM_S", -1.0)
    world.tick()
    assert world.ray.stopped == [f"caps-{job_id}-1"]
    world.tick(2)
    assert world.job(job_id).state is State.CANCELLED
    assert world.events(job_id)[-4:] == ["stop-requested", "signalled", "suspect", "cancelled"]
    assert world.runs.closed == {job_id: State.CANCELLED}


def test_a_worker_that_answers_the_flag_is_not_killed(world: World) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    world.leave(job_id, "cancelled", Reason.CANCELLED, evidence="stopped at step 7 of 9")
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.evidence) == (State.CANCELLED, "stopped at step 7 of 9")
    assert world.ray.stopped == []


def test_a_signal_that_ray_did_not_take_is_sent_again(world: World, no_waiting: None) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    refused = world.ray.stop
    world.ray.stop = _raiser(ClusterUnavailableError("Ray does not answer"))
    world.tick()
    assert "signalled" not in world.events(job_id)
    world.ray.stop = refused
    world.tick()
    assert world.ray.stopped == [f"caps-{job_id}-1"]


def test_a_paused_job_goes_on_with_a_new_attempt(world: World) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.PAUSE)
    world.tick()
    assert world.folder(job_id).stop_requested() == "pause"
    world.leave(job_id, "paused", Reason.PAUSED)
    world.tick(2)
    paused = world.job(job_id)
    assert (paused.state, paused.run_closed) == (State.PAUSED, False)
    world.store.set_desired(job_id, Desired.RUN)
    world.tick(2)
    job = world.job(job_id)
    assert (job.state, job.attempt, job.losses, job.errors) == (State.RUNNING, 2, 0, 0)
    assert world.ray.submitted == [f"caps-{job_id}-1", f"caps-{job_id}-2"]
    (left,) = [event for event in world.store.events(job_id) if event.type == "paused"]
    assert left.data["result"] is True
    (resumed,) = [event for event in world.store.events(job_id) if event.type == "unpaused"]
    assert resumed.data == {}, "neither a loss nor an error"
    assert "requeued" not in world.events(job_id)


def test_the_end_of_an_attempt_is_noted_once(world: World) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.PAUSE)
    world.tick()
    world.leave(job_id, "paused", Reason.PAUSED)
    world.tick()
    ended = world.job(job_id).current
    assert ended is not None
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    assert world.job(job_id).state is State.CANCELLED
    assert world.job(job_id).current == ended


def test_a_lost_worker_is_replaced(world: World, no_waiting: None) -> None:
    job_id = world.add()
    world.tick()
    world.folder(job_id).write_progress(Progress())
    world.end(job_id, RayStatus.FAILED)
    world.tick(3)
    job = world.job(job_id)
    assert (job.state, job.attempt, job.losses, job.run_id) == (State.RUNNING, 2, 1, "run-0")
    assert world.ray.jobs[f"caps-{job_id}-2"] is RayStatus.RUNNING
    first = AttemptFolder(world.settings.storage_root, job_id, 1)
    assert first.superseded()
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    assert world.job(job_id).state is State.SUCCEEDED


def test_a_stale_attempt_commits_nothing(world: World, no_waiting: None) -> None:
    job_id = world.add()
    world.tick()
    first = world.folder(job_id)
    world.end(job_id, RayStatus.FAILED)
    world.tick(3)
    assert world.job(job_id).attempt == 2
    first.write_result(Result(outcome="succeeded", reason=Reason.COMPLETED))
    world.tick()
    assert world.job(job_id).state is State.RUNNING


def test_what_is_left_of_a_job_that_was_given_up_is_asked_to_leave(
    world: World, no_waiting: None
) -> None:
    job_id = world.add()
    world.tick()
    world.store.set_desired(job_id, Desired.CANCEL)
    world.end(job_id, RayStatus.FAILED)
    world.tick(2)
    assert world.job(job_id).state is State.CANCELLED
    assert world.folder(job_id).stop_requested() == "cancel"


def test_an_attempt_that_comes_up_after_its_job_was_cancelled_finds_the_flag(
    world: World,
) -> None:
    job_id = world.add()
    submit = world.ray.submit
    world.ray.submit = _raiser(ClusterUnavailableError("no answer in time"))
    world.tick()
    world.ray.submit = submit
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    assert world.job(job_id).state is State.CANCELLED
    assert world.folder(job_id).stop_requested() == "cancel"


def test_retries_are_spent_on_errors(world: World, no_waiting: None) -> None:
    job_id = world.add(max_retries=1)
    for attempt in (1, 2):
        world.tick(2)
        assert world.job(job_id).attempt == attempt
        world.leave(job_id, "failed", Reason.ERROR, evidence="KeyError: 'x'")
        world.tick()
    job = world.job(job_id)
    assert (job.state, job.reason, job.evidence) == (State.FAILED, Reason.ERROR, "KeyError: 'x'")
    assert job.errors == 1


@pytest.mark.parametrize("content", [b"", b'{"outcome": "succ', b"\xff\xfe", b'{"outcome": "?"}'])
def test_a_result_that_cannot_be_read_fails_the_job(world: World, content: bytes) -> None:
    job_id = world.add()
    world.tick()
    (world.folder(job_id).path / "result.json").write_bytes(content)
    world.end(job_id, RayStatus.SUCCEEDED)
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.reason) == (State.FAILED, Reason.ERROR)
    assert "result.json is not one of ours" in job.evidence


def test_long_evidence_is_cut(world: World) -> None:
    job_id = world.add()
    world.tick()
    world.leave(job_id, "failed", Reason.ERROR, evidence="x" * 100_000)
    world.tick()
    assert len(world.job(job_id).evidence) == parts.EVIDENCE_LENGTH
    assert len(world.store.events(job_id)[-1].message) <= parts.EVIDENCE_LENGTH


# ------------------------------------------------------------------ waiting, and why


def test_jobs_start_by_priority_then_age_as_room_is(world: World) -> None:
    world.ray.capacity = [Node("n1", 4, 0)]
    low, first, second = world.add(priority=-1), world.add(), world.add()
    world.tick()
    states = [world.job(job_id).state for job_id in (first, second, low)]
    assert states == [State.RUNNING, State.RUNNING, State.QUEUED]
    assert "0 CPUs free" in world.job(low).waiting_reason
    world.leave(first, "succeeded", Reason.COMPLETED)
    world.tick(2)
    assert world.job(low).state is State.RUNNING


@pytest.mark.parametrize("desired", [Desired.CANCEL, Desired.PAUSE])
def test_a_job_that_will_not_run_takes_no_room(world: World, desired: Desired) -> None:
    world.ray.capacity = [Node("n1", 2, 0)]
    leaving, staying = world.add(), world.add()
    world.store.set_desired(leaving, desired)
    world.tick()
    assert world.job(staying).state is State.RUNNING


def test_a_job_that_backs_off_takes_no_room(world: World) -> None:
    world.ray.capacity = [Node("n1", 2, 0)]
    failing, other = world.add(max_retries=1), world.add()
    world.tick()
    world.leave(failing, "failed", Reason.ERROR)
    world.tick(2)
    assert "backs off" in world.job(failing).waiting_reason
    assert world.job(other).state is State.RUNNING


def test_while_ray_is_away_jobs_wait_and_can_be_cancelled(world: World) -> None:
    world.ray.away = True
    waiting, cancelled = world.add(), world.add()
    world.store.set_desired(cancelled, Desired.CANCEL)
    world.tick()
    assert world.job(waiting).waiting_reason == "Ray does not answer"
    assert world.job(cancelled).state is State.CANCELLED
    version = world.job(waiting).version
    world.tick()
    assert world.job(waiting).version == version, "the same reason is not written again"
    world.ray.away = False
    world.tick()
    assert world.job(waiting).state is State.RUNNING


def test_while_ray_is_away_a_running_job_is_left_alone(world: World, no_waiting: None) -> None:
    job_id = world.add()
    world.tick(2)
    before = world.job(job_id)
    world.ray.away = True
    world.tick(3)
    assert world.job(job_id) == before


def test_while_mlflow_is_away_jobs_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.runs.away = True
    job_id = world.add()
    world.tick(2)
    job = world.job(job_id)
    assert (job.state, job.waiting_reason) == (State.QUEUED, "MLflow does not answer")
    assert world.ray.submitted == []
    world.runs.away = False
    world.tick()
    assert world.job(job_id).state is State.QUEUED, "it is not asked at every tick"
    monkeypatch.setattr(waiting, "ASK_MLFLOW_AGAIN_S", -1.0)
    world.tick()
    assert world.job(job_id).state is State.RUNNING


def test_a_run_is_closed_when_mlflow_is_back(world: World, no_waiting: None) -> None:
    job_id = world.add()
    world.tick()
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.runs.away = True
    world.tick(2)
    assert (world.job(job_id).state, world.job(job_id).run_closed) == (State.SUCCEEDED, False)
    world.runs.away = False
    world.tick()
    assert world.job(job_id).run_closed
    assert world.runs.closed == {job_id: State.SUCCEEDED}


def test_one_jobs_trouble_is_its_own(world: World, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = world.add(), world.add()
    world.ray.breaks_for = broken
    world.tick(2)
    assert world.job(sound).current is not None
    assert world.ray.submitted == [f"caps-{sound}-1"]
    assert "a bug" in caplog.text


def test_a_run_that_cannot_be_closed_keeps_no_other_open(world: World) -> None:
    broken, sound = world.add(), world.add()
    world.tick()
    for job_id in (broken, sound):
        world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.runs.breaks_for = broken
    world.tick()
    assert world.runs.closed == {sound: State.SUCCEEDED}


def test_a_run_that_somebody_deleted_does_not_block_those_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it tried for ever: what MLflow refuses counts as closed."""
    runs, ended = MlflowRuns("http://mlflow"), []

    def end(run_id: str, status: str) -> None:
        if run_id == "run-0":
            raise MlflowException("must be in the 'active' state", INVALID_PARAMETER_VALUE)
        ended.append((run_id, status))

    client = SimpleNamespace(
        get_run=lambda run_id: SimpleNamespace(info=SimpleNamespace(status="RUNNING")),
        set_terminated=end,
        set_tag=lambda run_id, key, value: None,
        search_runs=lambda experiments, which, max_results: [],
    )
    monkeypatch.setattr(runs, "_client", client)
    monkeypatch.setattr(runs, "ping", lambda: None)
    monkeypatch.setattr(world.runs, "close", runs.close)
    deleted, later = world.add(), world.add()
    world.tick()
    for job_id in (deleted, later):
        world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    assert ended == [("run-1", "FINISHED")]
    assert world.job(deleted).run_closed
    assert world.job(later).run_closed
    assert world.store.unclosed() == []


# ------------------------------------------------------------------------- init_from


def test_initial_weights_are_waited_for_and_found(world: World) -> None:
    origin = world.add()
    heir = world.add(init_from=InitFrom(job=origin, checkpoint="last"))
    world.tick()
    assert world.job(heir).waiting_reason == (
        f"init_from: job {origin} is RUNNING, it has not ended yet"
    )
    last = CheckpointRef(path=f"jobs/{origin}/1/checkpoints/last.pt", sha256="0", epoch=1, step=2)
    world.leave(origin, "succeeded", Reason.COMPLETED, checkpoints={"last": last})
    world.tick(2)
    assert world.job(heir).state is State.RUNNING
    assert world.folder(heir).read_attempt().init_checkpoint == last.path


def test_a_job_that_waits_for_weights_takes_no_room(world: World) -> None:
    world.ray.capacity = [Node("n1", 4, 0)]
    origin = world.add()
    world.tick()
    world.add(init_from=InitFrom(job=origin), priority=10)
    other = world.add()
    world.tick()
    assert world.job(other).state is State.RUNNING


def test_weights_that_are_not_there_are_left_to_the_worker_to_miss(world: World) -> None:
    unknown = world.add(init_from=InitFrom(job="no-such-job"))
    failed = world.add()
    heir = world.add(init_from=InitFrom(job=failed))
    world.store.set_desired(failed, Desired.CANCEL)
    world.tick(2)
    for job_id, source in ((unknown, "no-such-job"), (heir, failed)):
        missing = world.folder(job_id).read_attempt().init_checkpoint
        assert missing == f"jobs/{source}/no-best-checkpoint"


def test_a_path_is_handed_on_as_it_is(world: World) -> None:
    job_id = world.add(init_from=InitFrom(path="shared/start.pt"))
    world.tick()
    assert world.folder(job_id).read_attempt().init_checkpoint == "shared/start.pt"


# ------------------------------------------------------------------ crashes and rivals


def test_an_attempt_that_ray_never_heard_of_is_submitted_again(world: World) -> None:
    job_id = world.add()
    submit = world.ray.submit
    world.ray.submit = _raiser(ClusterUnavailableError("no answer in time"))
    world.tick(2)
    job = world.job(job_id)
    assert job.current is not None
    assert (job.state, job.attempt, job.current.submitted_at) == (State.RUNNING, 1, None)
    world.ray.submit = submit
    world.tick()
    assert world.ray.submitted == [f"caps-{job_id}-1"]
    assert world.events(job_id) == ["submitted", "started", "dispatched"]


def test_a_restarted_head_costs_a_job_an_attempt_and_nothing_else(world: World) -> None:
    job_id = world.add()
    world.tick()
    child = subprocess.Popen(["sleep", "60"])
    register(world.folder(job_id), child.pid)
    world.ray.restart()
    world.tick(2)
    assert child.wait(timeout=5) == -signal.SIGKILL, "an orphan is killed, not waited for"
    assert world.folder(job_id).kill_requested()
    world.tick(2)
    job = world.job(job_id)
    assert (job.state, job.attempt, job.losses) == (State.RUNNING, 2, 0)
    assert world.events(job_id)[3:] == [
        "cluster-restarted",
        "killed",
        "requeued",
        "started",
        "dispatched",
    ]
    killed = next(e for e in world.store.events(job_id) if e.type == "killed")
    assert killed.data == {"killed": [{"pid": child.pid, "role": "worker"}]}
    assert world.store.attempts(job_id)[0].reason is Reason.NODE_LOST


@pytest.mark.parametrize("clock_set_by", [0.0, 3600.0, -3600.0])
def test_an_orphan_elsewhere_is_given_time_to_die(
    world: World, clock_set_by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.add()
    now, passed = world.store.now(), 0.0
    world.loop = ReconcilerLoop(world.store, world.ray, world.runs, world.settings, now=lambda: now)
    times = SimpleNamespace(time=time.time, monotonic=lambda: passed)
    monkeypatch.setattr(observer, "time", times)
    world.tick()
    record = ProcessRecord(host="another", pid=1, created=1.0, role="worker")
    world.folder(job_id).register(record)
    world.ray.restart()
    world.tick(3)
    timeout = world.settings.ray_reconnect_timeout_s + decide.SESSION_MARGIN_S
    now += clock_set_by
    world.tick(2)
    assert world.job(job_id).attempt == 1, "the clock was set, no time has passed"
    now, passed = now + timeout - 0.1, passed + timeout - 0.1
    world.tick(2)
    assert world.job(job_id).attempt == 1
    now, passed = now + 0.2, passed + 0.2
    world.tick(2)
    assert world.job(job_id).attempt == 2


def test_what_survives_its_cancelled_job_is_killed_and_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.add()
    world.tick()
    deaf = subprocess.Popen(
        ["python3", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"]
    )
    register(world.folder(job_id), deaf.pid, "rank-1")
    world.store.set_desired(job_id, Desired.CANCEL)
    world.tick()
    world.leave(job_id, "cancelled", Reason.CANCELLED, step=7)
    world.tick()
    assert world.job(job_id).state is State.RUNNING, "its slot is not free"
    monkeypatch.setattr(decide, "EXIT_GRACE_S", -1.0)
    world.tick()
    assert deaf.wait(timeout=5) == -signal.SIGKILL
    world.tick()
    assert world.job(job_id).state is State.CANCELLED
    receipt = world.store.events(job_id)[-1].data
    assert (receipt["step"], receipt["killed"]) == (7, True)
    assert 0 <= receipt["took_s"] < 60


def test_where_an_attempt_begins_is_history(world: World) -> None:
    job_id = world.add()
    world.tick()
    begun = Resumed(attempt=1, epoch=2, step=40, skipped=["step-60.pt is damaged"])
    world.folder(job_id).write_progress(Progress(resumed=begun))
    world.tick(3)
    events = [e for e in world.store.events(job_id) if e.type == "resumed"]
    assert [e.data["step"] for e in events] == [40]
    assert events[0].message == (
        "goes on from step 40, epoch 2 (attempt 1); 1 checkpoint passed over"
    )


def test_what_ray_runs_for_nobody_is_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = world.add()
    world.tick()
    stale, foreign = f"caps-{job_id}-0", "caps-another-queue-1"
    world.ray.jobs |= {stale: RayStatus.RUNNING, "caps-nobody-3": RayStatus.RUNNING}
    world.tick(2)
    assert world.ray.stopped == [], "it may be about to end"
    monkeypatch.setattr(sweeper, "FOREIGN_FOR_S", -1.0)
    world.tick()
    assert sorted(world.ray.stopped) == [stale, "caps-nobody-3"]
    world.ray.jobs[foreign] = RayStatus.RUNNING
    world.ray.queue_id = "another"
    world.tick(2)
    assert len(world.ray.stopped) == 2
    assert world.ray.jobs[f"caps-{job_id}-1"] is RayStatus.RUNNING


def test_a_deleted_job_goes_with_its_files(world: World) -> None:
    job_id = world.add()
    with pytest.raises(JobActiveError):
        world.store.request_delete(job_id)
    world.tick()
    folder = world.folder(job_id)
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    world.store.request_delete(job_id)
    with pytest.raises(JobNotFoundError):
        world.job(job_id)
    assert folder.path.exists()
    world.tick()
    assert not folder.path.parent.exists()
    assert world.store.deleted() == []
    assert world.store.current([job_id]) == {}


def test_a_retried_job_goes_on_where_it_failed(world: World) -> None:
    job_id = world.add()
    world.tick()
    world.leave(job_id, "failed", Reason.ERROR, evidence="KeyError")
    world.tick()
    assert world.job(job_id).run_closed
    world.store.retry(job_id)
    world.tick()
    job = world.job(job_id)
    assert (job.state, job.attempt, job.run_closed) == (State.RUNNING, 2, False)
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    assert world.runs.closed == {job_id: State.SUCCEEDED}
    with pytest.raises(JobConflictError):
        world.store.retry(job_id)


def lose(world: World, job_id: str, times: int) -> list[AttemptFolder]:
    """So many attempts die, each with a checkpoint; their folders. The next one runs."""
    world.tick()
    folders = []
    for _ in range(times):
        folders.append(world.folder(job_id))
        checkpoint(folders[-1].checkpoints / "step-00000007.pt", owner=job_id)
        world.end(job_id, RayStatus.FAILED)
        world.tick(4)
    return folders


def test_another_jobs_checkpoint_is_none_that_a_retry_could_begin_from(
    world: World, no_waiting: None
) -> None:
    job_id = world.add()
    folders = lose(world, job_id, times=2)
    checkpoint(folders[1].checkpoints / "step-00000007.pt", owner="another")
    world.leave(job_id, "failed", Reason.ERROR)
    world.tick()
    assert world.job(job_id).state is State.FAILED
    assert folders[0].checkpoints.exists()


def test_of_a_failed_job_only_the_newest_attempts_checkpoints_stay(
    world: World, no_waiting: None
) -> None:
    job_id = world.add()
    folders = lose(world, job_id, times=3)
    (folders[2].checkpoints / "step-00000007.pt").write_bytes(b"damaged")
    checkpoint(folders[2].checkpoints / "best.pt")  # taken over at its start
    checkpoint(world.folder(job_id).checkpoints / "best.pt")
    world.leave(job_id, "failed", Reason.ERROR)
    world.tick()
    assert [folder.checkpoints.exists() for folder in folders] == [False, True, True]


def test_an_attempt_that_took_the_best_over_and_died_has_gained_nothing(
    world: World, no_waiting: None
) -> None:
    job_id = world.add()
    for _ in range(decide.MAX_LOSSES):
        world.tick(4)
        checkpoint(world.folder(job_id).checkpoints / "best.pt")
        world.end(job_id, RayStatus.FAILED)
    world.tick(4)
    job = world.job(job_id)
    assert (job.state, job.reason) == (State.FAILED, Reason.WORKER_LOST)
    assert "3 times in a row" in job.evidence
    end = world.store.events(job_id)[-1].data
    assert (end["loss"], end["result"]) == (True, False)


def test_what_a_job_that_succeeded_need_not_keep_goes_after_its_result(world: World) -> None:
    job_id = world.add(keep=("best",))
    world.tick()
    folder = world.folder(job_id).checkpoints
    for name in ("best.pt", "last.pt"):
        checkpoint(folder / name)
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "best.pt.json"]


def test_a_job_is_deleted_once_mlflow_knows_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aftercare, "CLOSE_AGAIN_S", 0.0)
    job_id = world.add()
    world.tick()
    folder = world.folder(job_id)
    world.leave(job_id, "failed", Reason.ERROR)
    world.runs.away = True
    world.tick()
    world.store.request_delete(job_id)
    world.tick()
    assert folder.path.exists(), "what its worker left unsent is in it"
    world.runs.away = False
    world.tick(2)
    assert world.runs.closed == {job_id: State.FAILED}
    assert not folder.path.exists()


def test_a_record_that_cannot_be_read_holds_no_job_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = world.add()
    world.tick()
    (world.folder(job_id).path / "processes" / "x.json").mkdir(parents=True)
    world.leave(job_id, "succeeded", Reason.COMPLETED)
    world.tick()
    assert world.job(job_id).state is State.SUCCEEDED
    assert "can't be read" in caplog.text


def test_only_one_replica_looks_at_a_time(world: World) -> None:
    job_id = world.add()
    with world.store.tick_lock() as ours:
        assert ours
        other = Store(world.store.engine.url.render_as_string(hide_password=False))
        with other.tick_lock() as theirs:
            assert not theirs
        assert not world.loop.tick()
        other.close()
    assert world.job(job_id).state is State.QUEUED
    assert world.loop.tick()
    assert world.job(job_id).state is State.RUNNING


def test_behind_a_long_queue_nobody_starves(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PAGE", 3)
    origin = world.add()
    world.store.set_desired(origin, Desired.PAUSE)
    world.tick()
    for _ in range(8):
        world.add(init_from=InitFrom(job=origin), priority=10)
    ready = world.add()
    world.tick()
    assert world.job(ready).state is State.RUNNING


def test_jobs_without_a_place_do_not_hold_up_those_that_have_one(world: World) -> None:
    """Neither where their nodes are busy, nor where there is none of their kind."""
    world.ray.capacity = [Node("cpu", 16, 0), Node("gpu", 4, 1)]
    on_gpu = ResourcesConfig(cpus_per_worker=1, gpus_per_worker=1)
    on_h100 = on_gpu.model_copy(update={"accelerator_type": "H100"})
    for resources in (on_gpu, on_h100):
        for _ in range(60):
            world.add(resources=resources, priority=5)
    small = world.add(resources=ResourcesConfig(cpus_per_worker=1))
    world.tick()
    assert world.job(small).state is State.RUNNING
    assert len(world.store.running()) == 2, "and one on the GPU"


def test_a_second_run_that_a_late_replica_made_is_ended(world: World) -> None:
    job_id = world.add()
    ensure = world.runs.ensure

    def late(job: Job) -> tuple[str, str]:
        """Meanwhile another replica has made one."""
        world.store.update(world.job(job_id), experiment_id="e1", run_id="theirs")
        return ensure(job)

    world.runs.ensure = late  # type: ignore[method-assign]
    world.tick()
    assert world.runs.dropped == ["run-0"]
    world.tick()
    assert (world.job(job_id).run_id, world.job(job_id).state) == ("theirs", State.RUNNING)


def test_nobody_starves_behind_more_than_one_look_takes_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PAGE", 2)
    monkeypatch.setattr(waiting, "LOOKED_AT", 4)
    for _ in range(30):
        world.add(resources=ResourcesConfig(gpus_per_worker=1), priority=5)
    small = world.add()
    for _ in range(10):
        world.tick()
    assert world.job(small).state is State.RUNNING


def test_of_many_reasons_to_wait_some_are_written_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "TOLD", 2)
    stuck = [world.add(resources=ResourcesConfig(gpus_per_worker=1)) for _ in range(5)]
    told = []
    for _ in range(3):
        world.tick()
        told.append(sum(bool(world.job(job_id).waiting_reason) for job_id in stuck))
    assert told == [2, 4, 5]


def register(folder: AttemptFolder, pid: int, role: str = "worker") -> None:
    folder.register(
        ProcessRecord(host=host_id(), pid=pid, created=liveness.created(pid), role=role)
    )


def checkpoint(path: Path, step: int = 0, owner: str | None = None) -> None:
    """As far as the control plane looks at one: the file, and its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    if path.name.startswith("step-"):
        step = step_of(path)
    write_sidecar(CheckpointInfo(path, digest_of(path), 0, step, owner), len(b"weights"))


class KilledError(BaseException):
    """The control plane dies here."""


@dataclass
class Fuse:
    """Kills the control plane at the n-th point that it passes."""

    left: int
    at: str = ""

    def burn(self, point: str) -> None:
        """Pass a point."""
        self.left -= 1
        if self.left == 0:
            self.at = point
            raise KilledError(point)


READS = (
    "now", "running", "claimable", "unsettled", "unclosed", "deleted", "current", "get", "look",
    "queue_id", "tick_lock",
)  # fmt: skip


class Mortal:
    """Passes calls on; the control plane may die before and after each."""

    def __init__(self, target: object, fuse: Fuse) -> None:
        self._target = target
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value) or name in READS:
            return value  # reading leaves no trace: a death there is one before the next write

        def call(*arguments: Any, **named: Any) -> Any:
            self._fuse.burn(f"before {name}")
            answer = value(*arguments, **named)
            self._fuse.burn(f"after {name}")
            return answer

        return call


def _raiser(error: Exception) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        raise error

    return call


def _act_as_workers(world: World, job_id: str, story: str) -> None:
    """One step of whatever Ray runs: each attempt does its part of the story."""
    for submission, status in list(world.ray.jobs.items()):
        if job_id not in submission or status is not RayStatus.RUNNING:
            continue
        number = int(submission.rsplit("-", 1)[1])
        folder = AttemptFolder(world.settings.storage_root, job_id, number)
        stop = folder.stop_requested()
        if stop:
            folder.write_result(Result(outcome="cancelled", reason=Reason.CANCELLED))
            world.ray.jobs[submission] = RayStatus.SUCCEEDED
        elif story == "lost" and number == 1:
            world.ray.jobs[submission] = RayStatus.FAILED
        elif story == "cancelled":
            world.store.set_desired(job_id, Desired.CANCEL)
        else:
            folder.write_result(Result(outcome="succeeded", reason=Reason.COMPLETED))
            world.ray.jobs[submission] = RayStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("story", "attempts", "state"),
    [
        ("success", 1, State.SUCCEEDED),
        ("lost", 2, State.SUCCEEDED),
        ("cancelled", 1, State.CANCELLED),
    ],
)
def test_a_death_at_any_point_is_mended_by_the_next_look(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    story: str,
    attempts: int,
    state: State,
) -> None:
    monkeypatch.setattr(decide, "CONFIRM_S", -1.0)
    died_at: list[str] = []
    for point in range(1, 100):
        fuse = Fuse(point)

        class MortalFolder(AttemptFolder):
            """Dies before or after a write."""

            def write_attempt(self, attempt: Any, fuse: Fuse = fuse) -> None:
                fuse.burn("before write_attempt")
                super().write_attempt(attempt)
                fuse.burn("after write_attempt")

            def request_stop(self, kind: Any, fuse: Fuse = fuse) -> None:
                fuse.burn("before request_stop")
                super().request_stop(kind)
                fuse.burn("after request_stop")

        monkeypatch.setattr(parts, "AttemptFolder", MortalFolder)
        job_id = world.add()
        mortal = [Mortal(part, fuse) for part in (world.store, world.ray, world.runs)]
        loop = ReconcilerLoop(*mortal, world.settings)
        for _ in range(12):
            try:
                loop.tick()
            except KilledError:
                loop = ReconcilerLoop(*mortal, world.settings)
            _act_as_workers(world, job_id, story)
            if world.job(job_id).run_closed:
                break
        job = world.job(job_id)
        where = f"killed {fuse.at or 'nowhere'}"
        assert (job.state, job.attempt, job.run_closed) == (state, attempts, True), where
        assert world.runs.closed[job_id] is state, where
        ours = [s for s in world.ray.jobs if job_id in s]
        assert ours == [f"caps-{job_id}-{n + 1}" for n in range(attempts)], where
        assert not any(world.ray.jobs[s].alive for s in ours), where
        ends = [e for e in world.events(job_id) if e == state.value.lower()]
        assert len(ends) == 1, where
        died_at.append(fuse.at)
        if not fuse.at:
            break
    assert died_at[-1] == "", "every point was tried"
    assert {"after ensure", "after start_attempt", "after submit", "after write_attempt"} <= {
        *died_at
    }


def test_two_control_planes_on_one_store_start_nothing_twice(world: World) -> None:
    world.ray.capacity = [Node("n1", 12, 0)]
    small = ResourcesConfig(cpus_per_worker=1)
    jobs = [world.add(resources=small) for _ in range(12)]
    loops = [ReconcilerLoop(world.store, world.ray, world.runs, world.settings) for _ in range(2)]
    start = threading.Barrier(2)

    def look(loop: ReconcilerLoop) -> None:
        start.wait()
        for _ in range(6):
            loop.tick()

    threads = [threading.Thread(target=look, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(world.ray.jobs) == sorted(f"caps-{job_id}-1" for job_id in jobs)
    for job_id in jobs:
        job = world.job(job_id)
        assert (job.state, job.attempt) == (State.RUNNING, 1)
        assert job.current is not None
        assert job.current.submitted_at is not None
        assert world.events(job_id) == ["submitted", "started", "dispatched"]
        assert job.run_id == world.runs.made[job_id]


def test_the_thread_looks_when_woken_and_survives_a_bad_look(world: World) -> None:
    world.settings = world.settings.model_copy(update={"tick_s": 30})
    loop = ReconcilerLoop(world.store, world.ray, world.runs, world.settings)
    ticked = threading.Semaphore(0)
    looks: list[int] = []

    def tick() -> None:
        looks.append(1)
        ticked.release()
        if len(looks) == 1:
            raise RuntimeError("the database is away")

    loop.tick = tick
    loop.start()
    for _ in range(2):
        assert ticked.acquire(timeout=5)
        loop.wake()
    assert ticked.acquire(timeout=5)
    loop.stop()
    assert not any(thread.name == "reconciler" for thread in threading.enumerate())


# ---------------------------------------------------------------- searches, several workers


SEARCH_SPEC = SearchSpec.model_validate(SEARCH, strict=False)


@pytest.fixture
def slots(world: World) -> World:
    """A cluster whose head offers driver slots."""
    world.ray.capacity = [Node("n1", 8, 0, driver_slots=2)]
    return world


def test_a_search_gets_a_driver_that_takes_no_core(slots: World) -> None:
    search = slots.store.add(SEARCH_SPEC).id
    slots.tick()
    attempt = slots.folder(search).read_attempt()
    assert isinstance(attempt, SearchAttempt)
    assert (attempt.spec, attempt.retry_through) == (SEARCH_SPEC, 0)
    assert (attempt.experiment_id, attempt.run_id) == ("e1", "run-0")
    assert slots.ray.needs[f"caps-{search}-1"] == DRIVER
    slots.leave(search, "succeeded", Reason.BUDGET, evidence="stopped after 600 s")
    slots.tick()
    assert slots.job(search).state is State.SUCCEEDED


def test_several_workers_get_a_driver_too(slots: World) -> None:
    job = slots.add(resources=ResourcesConfig(workers=2))
    slots.tick()
    assert slots.folder(job).read_attempt().kind == "train"
    assert slots.ray.needs[f"caps-{job}-1"] == DRIVER


def test_a_search_waits_for_a_driver_slot(world: World) -> None:
    search = world.store.add(SEARCH_SPEC).id
    world.tick()
    assert "driver_slot" in world.job(search).waiting_reason
    world.ray.capacity = [Node("n1", 8, 0, driver_slots=1)]
    world.tick()
    assert world.job(search).state is State.RUNNING


def test_a_search_has_no_deadline_of_the_queue(slots: World) -> None:
    spec = SearchSpec.model_validate(SEARCH | {"budget": {"max_runtime_s": 10}}, strict=False)
    search = slots.store.add(spec).id
    slots.tick()
    job = slots.job(search)
    slots.store.update(job, attempt={"submitted_at": slots.store.now() - 1000})
    slots.tick()
    assert slots.folder(search).stop_requested() is None
    slots.leave(search, "failed", Reason.TRIALS_FAILED, evidence="6 trials failed")
    slots.tick()
    assert (slots.job(search).state, slots.job(search).reason) == (
        State.FAILED,
        Reason.TRIALS_FAILED,
    )


def test_retried_trials_are_a_new_attempt_of_the_search(slots: World) -> None:
    search = slots.store.add(SEARCH_SPEC).id
    slots.tick()
    slots.leave(search, "failed", Reason.TRIALS_FAILED)
    slots.tick()
    slots.store.reopen(search)
    slots.tick()
    attempt = slots.folder(search).read_attempt()
    assert isinstance(attempt, SearchAttempt)
    assert (attempt.attempt, attempt.retry_through, attempt.run_id) == (2, 1, "run-0")
    assert slots.job(search).run_closed is False
    slots.leave(search, "succeeded", Reason.COMPLETED)
    slots.tick()
    assert slots.runs.closed == {search: State.SUCCEEDED}
    assert slots.job(search).run_closed


def test_a_search_that_gets_on_is_no_poison(slots: World, no_waiting: None) -> None:
    search = slots.store.add(SEARCH_SPEC).id
    slots.tick()
    for number in range(1, 6):
        folder = slots.folder(search)
        done = Trial(
            number=number,
            configuration=number,
            seed=0,
            values={},
            state=TrialState.SUCCEEDED,
            attempt=number,
        )
        TrialWriter(trials_file(folder), TrialTable()).trial(done)
        slots.end(search, RayStatus.FAILED)
        slots.tick(4)
        assert slots.job(search).attempt == number + 1
    for _ in range(3):
        slots.end(search, RayStatus.FAILED)
        slots.tick(4)
    assert (slots.job(search).state, slots.job(search).reason) == (
        State.FAILED,
        Reason.WORKER_LOST,
    )


def test_the_base_of_a_search_may_begin_from_a_job(slots: World) -> None:
    origin = slots.add()
    base = SEARCH["base"] | {"init_from": {"job": origin, "checkpoint": "best"}}
    search = slots.store.add(SearchSpec.model_validate(SEARCH | {"base": base}, strict=False)).id
    slots.tick()
    assert "has not ended yet" in slots.job(search).waiting_reason
    best = CheckpointRef(path="jobs/x/1/checkpoints/best.pt", sha256="0" * 64, epoch=1, step=1)
    slots.leave(origin, "succeeded", Reason.COMPLETED, checkpoints={"best": best})
    slots.tick(2)
    assert slots.folder(search).read_attempt().init_checkpoint == best.path
