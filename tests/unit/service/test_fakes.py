"""The stand-ins of `service.testing` pass the same tests as what they stand for."""

import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import psutil
import pytest
from mlflow import MlflowClient

from capsmodel.checkpoint import CheckpointFolder
from service.cluster import Cluster, RayCluster, RayStatus
from service.demand import DRIVER, Bundle
from service.errors import ClusterUnavailableError, TrackingUnavailableError
from service.queue.job import Desired, Job, State
from service.runs import MlflowRuns
from service.stack import state as stack_state
from service.stack.processes import tagged
from service.stack.services import services
from service.testing.clock import FakeClock
from service.testing.cluster import FakeCluster
from service.testing.mlflow import FakeMlflow
from service.testing.mlflow_server import serve_mlflow
from service.testing.ray import FakeNode, FakeRay, IdleProcess, Submission
from service.testing.ray_server import serve_ray
from service.testing.runs import FakeRuns
from service.testing.worker import Fakes
from support.mlflow_server import MlflowServer
from support.stack import until
from workers.attempt import Attempt, AttemptFolder, Reason
from workers.attempt import installed_release as release
from workers.specs import PRESETS

QUEUE = "a-queue"
ONE = Bundle(cpus=1)
SECONDS = 60.0
DEMO = PRESETS["demo"]


class PlayedCluster(Protocol):
    """A cluster, and what the test does to it."""

    cluster: Cluster

    def end(self, job: str, attempt: int, exit_code: int) -> None:
        """The attempt's process leaves by itself."""

    def lives(self, job: str, attempt: int) -> bool:
        """Whether its process runs."""

    def restart_head(self) -> None:
        """The head is killed and started again."""


class InMemory:
    """`FakeRay`, asked directly or over HTTP."""

    def __init__(self, cluster: Callable[[FakeRay], Cluster]) -> None:
        self.processes: dict[str, IdleProcess] = {}
        self.ray = FakeRay(
            [FakeNode("n1", 4, driver_slots=2)], spawn=self._spawn, reconnect_timeout_s=0.2
        )
        self.cluster = cluster(self.ray)

    def _spawn(self, submission: Submission) -> IdleProcess:
        self.processes[submission.id] = IdleProcess()
        return self.processes[submission.id]

    def end(self, job: str, attempt: int, exit_code: int) -> None:
        self.processes[f"caps-{job}-{attempt}"].end(exit_code)

    def lives(self, job: str, attempt: int) -> bool:
        self.ray.advance()
        return self.processes[f"caps-{job}-{attempt}"].exit_code is None

    def restart_head(self) -> None:
        self.ray.kill_head()
        with pytest.raises(ClusterUnavailableError):
            self.cluster.look()
        self.ray.start_head()


class Real:
    """A Ray head as the stack starts it; its jobs wait for a file that tells how to end."""

    def __init__(self, home: Path) -> None:
        self.home = home
        python = home / "python"
        python.write_text(
            '#!/bin/sh\nend="$(dirname "$0")/end-$4-$5"\n'
            'while [ ! -e "$end" ]; do sleep 0.1; done; exit "$(cat "$end")"\n'
        )
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        # Not the usual ports: a test beside this one may be about to take them.
        ports = {name: stack_state.free_port() for name in stack_state.PREFERRED_PORTS}
        state = stack_state.fresh(stack_state.StackState(stack_id="real", ports=ports))
        self.service = services(home, state, cpus=4, gpus=0)[0]
        self.environment = self.service.environment | {"CAPS_PYTHON": str(python)}
        self._start()
        token = stack_state.token_path(home).read_text()
        self.cluster = RayCluster(self.service.address, token)

    def _start(self) -> None:
        with (self.home / "ray.log").open("ab") as log:
            self.starter = subprocess.Popen(
                self.service.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.service.ready, 120, "Ray's head answers")

    def end(self, job: str, attempt: int, exit_code: int) -> None:
        (self.home / f"end-{job}-{attempt}").write_text(str(exit_code))

    def lives(self, job: str, attempt: int) -> bool:
        def ours(process: psutil.Process) -> bool:
            try:
                return process.cmdline()[-4:] == ["-m", "workers", job, str(attempt)]
            except psutil.Error:
                return False

        return any(ours(process) for process in psutil.process_iter())

    def restart_head(self) -> None:
        """All of the head, as when its machine is started again; what it ran is left alone."""
        daemons = ("gcs_server", "raylet", "dashboard", "ray start", "monitor", "agent")
        for process in tagged(self.home, "ray"):
            try:
                words = " ".join(process.cmdline())
                if any(name in words for name in daemons):
                    process.kill()
            except psutil.Error:
                pass
        self.starter.wait()
        self._start()

    def close(self) -> None:
        for process in tagged(self.home, "ray"):
            with suppress(psutil.Error):
                process.kill()
        self.starter.wait()


@pytest.fixture(
    params=["fake", "served", pytest.param("real", marks=[pytest.mark.slow])], scope="module"
)
def played(request: pytest.FixtureRequest) -> Iterator[PlayedCluster]:
    """A cluster with 4 CPUs and some driver slots."""
    if request.param == "fake":
        yield InMemory(FakeCluster)
    elif request.param == "served":
        ray_holder = InMemory(FakeCluster)
        with serve_ray(ray_holder.ray) as address:
            client = RayCluster(address)
            ray_holder.cluster = client
            yield ray_holder
            client.close()
    else:
        home = Path(tempfile.mkdtemp(prefix="caps-f-", dir="/tmp"))  # Ray wants a short path
        real = Real(home)
        yield real
        real.close()
        shutil.rmtree(home, ignore_errors=True)


def reaches(played: PlayedCluster, submission: str, status: RayStatus) -> None:
    """Wait for Ray's word."""
    deadline = time.monotonic() + SECONDS
    while (found := played.cluster.look().job(submission)).status is not status:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def submit(played: PlayedCluster, job: str, need: Bundle = ONE) -> str:
    """An attempt that runs."""
    played.cluster.submit(f"caps-{job}-1", job, 1, need, QUEUE)
    reaches(played, f"caps-{job}-1", RayStatus.RUNNING)
    until(lambda: played.lives(job, 1), SECONDS, "the process runs")
    return f"caps-{job}-1"


def test_a_cluster_says_what_it_has(played: PlayedCluster) -> None:
    seen = played.cluster.look()
    assert seen.session
    assert [node.cpus for node in seen.nodes] == [4]
    assert seen.nodes[0].driver_slots >= 2
    assert seen.dead_nodes == frozenset()
    assert seen.job("caps-nobody-1").status is RayStatus.MISSING


def test_an_attempt_runs_once_however_often_it_is_submitted(played: PlayedCluster) -> None:
    submission = submit(played, "twice")
    played.cluster.submit(submission, "twice", 1, ONE, QUEUE)
    seen = played.cluster.look()
    assert (seen.jobs[submission].queue_id, seen.session) == (QUEUE, played.cluster.look().session)
    assert seen.jobs[submission].node_id == seen.nodes[0].id
    played.end("twice", 1, 0)
    reaches(played, submission, RayStatus.SUCCEEDED)
    assert not played.lives("twice", 1)
    played.cluster.submit(submission, "twice", 1, ONE, QUEUE)
    assert played.cluster.look().job(submission).status is RayStatus.SUCCEEDED


def test_an_attempt_that_fails_is_told_with_its_status(played: PlayedCluster) -> None:
    submission = submit(played, "fails")
    played.end("fails", 1, 3)
    reaches(played, submission, RayStatus.FAILED)
    assert "exit code 3" in played.cluster.look().job(submission).message


def test_a_stopped_attempt_is_gone(played: PlayedCluster) -> None:
    submission = submit(played, "stopped", DRIVER)
    played.cluster.stop(submission)
    played.cluster.stop("caps-nobody-1")
    reaches(played, submission, RayStatus.STOPPED)
    until(lambda: not played.lives("stopped", 1), SECONDS, "the process is gone")


def test_what_does_not_fit_waits(played: PlayedCluster) -> None:
    submit(played, "large", Bundle(cpus=3))
    played.cluster.submit("caps-next-1", "next", 1, Bundle(cpus=3), QUEUE)
    assert played.cluster.look().job("caps-next-1").status is RayStatus.PENDING
    played.end("large", 1, 0)
    reaches(played, "caps-next-1", RayStatus.RUNNING)
    played.end("next", 1, 0)
    reaches(played, "caps-next-1", RayStatus.SUCCEEDED)


def test_a_new_head_knows_nothing_and_nothing_outlives_the_old_one(played: PlayedCluster) -> None:
    submission = submit(played, "orphan")
    before = played.cluster.look()
    played.restart_head()
    after = played.cluster.look()
    assert after.session != before.session
    assert after.job(submission).status is RayStatus.MISSING
    assert {node.id for node in after.nodes}.isdisjoint(node.id for node in before.nodes)
    until(lambda: not played.lives("orphan", 1), SECONDS, "the orphan is gone")
    played.cluster.stop(submission)


# ------------------------------------------------------- what only the stand-in can be told


def in_memory() -> InMemory:
    return InMemory(FakeCluster)


@pytest.mark.parametrize("over_http", [False, True])
def test_an_answer_that_was_lost_is_an_error_and_the_job_runs(over_http: bool) -> None:
    played = in_memory()
    played.ray.answers_to_lose = 1
    if over_http:  # the client looks the submission up, and finds it
        with serve_ray(played.ray) as address:
            client = RayCluster(address)
            client.submit("caps-j-1", "j", 1, ONE, QUEUE)
            client.close()
    else:
        with pytest.raises(ClusterUnavailableError):
            played.cluster.submit("caps-j-1", "j", 1, ONE, QUEUE)
    assert played.ray.accepted == ["caps-j-1"]
    assert played.lives("j", 1)


def test_a_dead_node_takes_its_processes_along() -> None:
    played = in_memory()
    played.cluster.submit("caps-j-1", "j", 1, ONE, QUEUE)
    node = played.ray.nodes[0]
    played.ray.kill_node(node)
    seen = played.cluster.look()
    assert (seen.nodes, seen.dead_nodes) == ([], {node.id})
    assert seen.job("caps-j-1").status is RayStatus.FAILED
    assert not played.lives("j", 1)
    assert played.ray.replace_node(node).id != node.id


def test_failed_may_be_false() -> None:
    played = in_memory()
    played.cluster.submit("caps-j-1", "j", 1, ONE, QUEUE)
    played.ray.submissions["caps-j-1"].failed_falsely = True
    assert played.cluster.look().job("caps-j-1").status is RayStatus.FAILED
    assert played.lives("j", 1)


def test_who_ignores_sigterm_is_killed() -> None:
    class Deaf(IdleProcess):
        def terminate(self) -> None:
            """Nothing."""

    clock = FakeClock(0.0)
    ray = FakeRay(passed=clock.passed, spawn=lambda submission: Deaf())
    cluster = FakeCluster(ray)
    cluster.submit("caps-j-1", "j", 1, ONE, QUEUE)
    cluster.stop("caps-j-1")
    clock.sleep(2.9)
    assert cluster.look().job("caps-j-1").status is RayStatus.RUNNING
    clock.sleep(0.2)
    assert cluster.look().job("caps-j-1").status is RayStatus.STOPPED


# --------------------------------------------------------------------------------- MLflow


class PlayedRuns(Protocol):
    """A tracking server, and what the test sees of it."""

    runs: "FakeRuns | MlflowRuns"

    def status(self, run_id: str) -> str:
        """Of a run."""

    def tag(self, run_id: str, name: str) -> str | None:
        """Of a run."""

    def delete(self, run_id: str) -> None:
        """Somebody deletes a run."""

    def make(self, experiment: str, job: Job) -> str:
        """A second run of the job, as a replica makes it that did not see the first."""


class RunsInMemory:
    """`FakeMlflow`, asked directly or over HTTP."""

    def __init__(self) -> None:
        self.mlflow = FakeMlflow()
        self.runs: FakeRuns | MlflowRuns = FakeRuns(self.mlflow)

    def status(self, run_id: str) -> str:
        return self.mlflow.runs[run_id].status

    def tag(self, run_id: str, name: str) -> str | None:
        return self.mlflow.runs[run_id].tags.get(name)

    def delete(self, run_id: str) -> None:
        self.mlflow.runs[run_id].deleted = True

    def make(self, experiment: str, job: Job) -> str:
        tags = {"caps.job": job.id, "caps.kind": job.kind.value}
        return self.mlflow.create_run(experiment, job.spec.name, tags, 0).id


class RealRuns:
    """A real server."""

    def __init__(self, uri: str) -> None:
        self.runs = MlflowRuns(uri)
        self._client = MlflowClient(uri)

    def status(self, run_id: str) -> str:
        return str(self._client.get_run(run_id).info.status)

    def tag(self, run_id: str, name: str) -> str | None:
        found = self._client.get_run(run_id).data.tags.get(name)
        return None if found is None else str(found)

    def delete(self, run_id: str) -> None:
        self._client.delete_run(run_id)

    def make(self, experiment: str, job: Job) -> str:
        tags = {"caps.job": job.id, "caps.kind": job.kind.value}
        return str(self._client.create_run(experiment, tags=tags).info.run_id)


@pytest.fixture(
    params=["fake", "served", pytest.param("real", marks=[pytest.mark.slow])], scope="module"
)
def tracking(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlayedRuns]:
    """A tracking server."""
    if request.param == "fake":
        yield RunsInMemory()
    elif request.param == "served":
        found = RunsInMemory()
        with serve_mlflow(found.mlflow) as uri:
            found.runs = MlflowRuns(uri)
            yield found
    else:
        port = stack_state.free_port(None)
        server = MlflowServer(tmp_path_factory.mktemp("mlflow"), port)
        server.start()
        yield RealRuns(server.uri)
        server.kill()


def a_job(job_id: str, state: State = State.QUEUED) -> Job:
    return Job(job_id, DEMO, Desired.RUN, state, 0, 1, created_at=0.0, updated_at=0.0)


def with_run(tracking: PlayedRuns, job: Job) -> tuple[Job, str]:
    experiment_id, run_id = tracking.runs.ensure(job)
    return replace(job, experiment_id=experiment_id, run_id=run_id), run_id


def test_a_run_is_made_once(tracking: PlayedRuns) -> None:
    first = tracking.runs.ensure(a_job("a"))
    assert tracking.runs.ensure(a_job("a")) == first
    other = tracking.runs.ensure(a_job("b"))
    assert other[0] == first[0]
    assert other[1] != first[1]
    assert tracking.status(first[1]) == "RUNNING"
    assert tracking.tag(first[1], "caps.job") == "a"
    tracking.runs.ping()


@pytest.mark.parametrize(
    ("state", "status"),
    [(State.SUCCEEDED, "FINISHED"), (State.FAILED, "FAILED"), (State.CANCELLED, "KILLED")],
)
def test_a_run_is_closed_as_its_job_ended(tracking: PlayedRuns, state: State, status: str) -> None:
    job, run_id = with_run(tracking, a_job(f"closed-{state.lower()}", state))
    for _ in range(2):
        assert tracking.runs.close(job, None) is True
        assert tracking.status(run_id) == status
        assert tracking.tag(run_id, "caps.state") == state.value


@pytest.mark.parametrize("dropped", [True, False])
def test_of_two_runs_of_a_job_none_stays_open(tracking: PlayedRuns, dropped: bool) -> None:
    job, run_id = with_run(tracking, a_job(f"twice-{dropped}", State.SUCCEEDED))
    assert job.experiment_id is not None
    second = tracking.make(job.experiment_id, job)
    if dropped:
        tracking.runs.drop(second)
        assert (tracking.status(run_id), tracking.status(second)) == ("RUNNING", "KILLED")
    assert tracking.runs.close(job, None) is True
    assert (tracking.status(run_id), tracking.status(second)) == ("FINISHED", "KILLED")


def test_a_deleted_run_counts_as_closed(tracking: PlayedRuns) -> None:
    job, run_id = with_run(tracking, a_job("deleted", State.FAILED))
    tracking.delete(run_id)
    assert tracking.runs.close(job, None) is True


@pytest.mark.parametrize("over_http", [False, True])
def test_a_server_that_is_away_is_told_and_keeps_what_it_had(over_http: bool) -> None:
    found = RunsInMemory()
    with serve_mlflow(found.mlflow) as uri:
        runs = MlflowRuns(uri) if over_http else found.runs
        job, _ = with_run(found, a_job("a", State.FAILED))
        found.mlflow.away = True
        for call in (runs.ping, lambda: runs.ensure(job), lambda: runs.close(job, None)):
            with pytest.raises(TrackingUnavailableError):
                call()
        found.mlflow.away = False
        assert runs.ensure(job)[1] == job.run_id


# --------------------------------------------------------------------------------- worker


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(FakeClock(1_900_000_000.0), tmp_path)


def orders(fakes: Fakes, job: str = "j", attempt: int = 1) -> AttemptFolder:
    """The control plane's part."""
    folder = AttemptFolder(fakes.storage, job, attempt)
    common = {"package_version": release(), "job": job, "attempt": attempt, "run_id": "r"}
    folder.write_attempt(Attempt(**common, spec=DEMO, tracking_uri="http://mlflow"))
    return folder


def test_a_worker_begins_works_and_leaves_its_result(fakes: Fakes) -> None:
    folder = orders(fakes)
    worker = fakes.start("j", 1, "here", steps=4)
    worker.act()
    assert [record.pid for record in folder.processes()] == [worker.pid]
    assert fakes.living(folder.processes())
    progress = folder.read_progress()
    assert progress is not None
    assert (progress.step, folder.heartbeat()) == (1, 1_900_000_000.0)
    for _ in range(3):
        worker.act()
    result = folder.read_result()
    assert result is not None
    assert (result.outcome, result.step, worker.exit_code) == ("succeeded", 4, 0)
    assert [commit.what for commit in fakes.ledger] == ["checkpoint", "checkpoint", "succeeded"]
    assert not fakes.living(folder.processes())


@pytest.mark.parametrize(("asked", "outcome"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_worker_obeys_its_stop_flag(fakes: Fakes, asked: str, outcome: str) -> None:
    folder = orders(fakes)
    worker = fakes.start("j", 1, "here")
    worker.act()
    folder.request_stop("pause" if asked == "pause" else "cancel")
    worker.act()
    result = folder.read_result()
    assert result is not None
    assert result.outcome == outcome
    assert any(folder.checkpoints.iterdir())


def test_a_deaf_worker_dies_by_the_kill_flag_and_a_frozen_one_by_sigkill_alone(
    fakes: Fakes,
) -> None:
    folder = orders(fakes)
    deaf = fakes.start("j", 1, "there", deaf=True)
    frozen = fakes.start("j", 1, "here", frozen=True)
    deaf.act()
    frozen.frozen = False
    frozen.act()
    frozen.frozen = True
    folder.request_stop("cancel")
    deaf.terminate()
    deaf.act()
    assert deaf.lives
    folder.request_kill()
    deaf.act()
    frozen.act()
    assert (deaf.exit_code, frozen.exit_code) == (-9, None)
    assert [fakes.kill(record) for record in fakes.living(folder.processes())] == [True]
    assert frozen.exit_code == -9


def test_a_worker_that_wakes_up_late_commits_nothing(fakes: Fakes) -> None:
    folder = orders(fakes)
    stale = fakes.start("j", 1, "here", steps=2)
    stale.act()
    orders(fakes, attempt=2)
    fresh = fakes.start("j", 2, "here")
    fresh.act()
    stale.act()
    stale.leave("succeeded", Reason.COMPLETED)
    assert (stale.exit_code, folder.read_result()) == (1, None)
    assert fresh.lives


def test_a_worker_goes_on_from_the_newest_checkpoint(fakes: Fakes) -> None:
    orders(fakes)
    first = fakes.start("j", 1, "here", steps=9)
    for _ in range(5):
        first.act()
    first.kill()
    folder = orders(fakes, attempt=2)
    fakes.start("j", 2, "here", steps=9).act()
    progress = folder.read_progress()
    assert progress is not None
    assert progress.resumed is not None
    assert (progress.resumed.attempt, progress.resumed.step, progress.step) == (1, 4, 5)
    assert [(s.attempt, s.step, s.left) for s in fakes.starts] == [(1, 0, 0), (2, 4, 4)]
    assert fakes.gains == {("j", 1)}
    assert sorted(file.name for file in folder.checkpoints.iterdir()) == [
        "best.pt",
        "best.pt.json",
    ]


def trained(fakes: Fakes, steps: int, attempt: int = 1) -> CheckpointFolder:
    """The checkpoints of an attempt that did so many steps, as the library reads them."""
    folder = orders(fakes, attempt=attempt)
    worker = fakes.start("j", attempt, "here", steps=8)
    for _ in range(steps):
        worker.act()
    worker.kill()
    return CheckpointFolder(folder.checkpoints, owner=folder.owner)


def test_played_checkpoints_are_whole_by_the_librarys_own_measure(fakes: Fakes) -> None:
    """By their names, their sidecars and their owner; two are kept, and the best."""
    checkpoints = trained(fakes, 7)
    newest, problems = checkpoints.newest_verified()
    best = checkpoints.best()
    assert newest is not None
    assert best is not None
    assert (newest.path.name, newest.step, best.step, problems) == ("step-00000006.pt", 6, 2, [])
    names = {file.name for file in checkpoints.path.glob("*.pt")}
    assert names == {"best.pt", "step-00000004.pt", "step-00000006.pt"}


def test_a_finished_worker_keeps_the_last_and_the_best_checkpoint(fakes: Fakes) -> None:
    earlier = trained(fakes, 3)
    checkpoints = trained(fakes, 6, attempt=2)
    newest, problems = checkpoints.newest_verified()
    assert newest is not None
    assert (newest.path.name, newest.step, problems) == ("last.pt", 8, [])
    assert {file.name for file in checkpoints.path.glob("*.pt")} == {"best.pt", "last.pt"}
    assert not earlier.path.exists()


def test_a_spoilt_checkpoint_is_passed_over(fakes: Fakes) -> None:
    checkpoints = trained(fakes, 5)
    assert fakes.damage("j")
    newest, problems = checkpoints.newest_verified()
    assert newest is not None
    assert (newest.step, len(problems), fakes.left) == (2, 1, {"j": 2})
    trained(fakes, 1, attempt=2)
    assert (fakes.starts[-1].step, fakes.starts[-1].left) == (2, 2)
    assert not fakes.damage("nobody")
