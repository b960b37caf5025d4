"""MLflow hangs, dies and comes back: no training waits for it, and no point is lost or doubled."""

import contextlib
import math
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from conftest import free_port

from service.api.views import JobView
from service.client import CapsClient
from service.queue.job import Desired, Job, State
from service.runs import MlflowRuns
from service.stack.processes import tagged
from support.mlflow_server import MlflowServer, metric_rows
from support.stack import TINY, Stack, until
from workers import uploads
from workers.attempt import Attempt, AttemptFolder, Reason
from workers.specs import PRESETS
from workers.spool import Point, Spool, points_from, spools_of
from workers.tracking import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHARE = 0.01
"""Of the training thread's time that tracking may take."""
LONGEST_S = 0.05
"""What one call may take."""
STEP_S = 0.02

DEMO = PRESETS["demo"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def job(server: MlflowServer) -> Job:
    """A job with its run on the server."""
    name = f"j{time.time_ns()}"
    job = Job(name, DEMO, Desired.RUN, State.RUNNING, 1, 1, created_at=0.0, updated_at=0.0)
    experiment_id, run_id = MlflowRuns(server.uri).ensure(job)
    return replace(job, experiment_id=experiment_id, run_id=run_id)


def run_of(job: Job) -> str:
    assert job.run_id is not None
    return job.run_id


def spooled(folder: AttemptFolder) -> list[Point]:
    """All that an attempt wrote down."""
    return [point for file in spools_of(folder.metrics) for point in points_from(file, 0)[0]]


def assert_all_there_once(rows: list[tuple[str, float, int, int]], points: list[Point]) -> None:
    """What MLflow's database holds is what was written down, value by value."""
    doubled = [key for key, times in Counter((r[0], r[3]) for r in rows).items() if times > 1]
    assert not doubled
    assert sorted(rows) == sorted(tuple(point) for point in points)


def train_for(tracker: Tracker, seconds: float, first_step: int = 0) -> int:
    """What a training thread does, with a call a step; the next step's number."""
    weights, step, until_ = torch.randn(256, 256), first_step, time.monotonic() + seconds
    while time.monotonic() < until_:
        over = time.monotonic() + STEP_S
        while time.monotonic() < over:
            weights = torch.tanh(weights @ weights)
        values = {f"train/{name}": float(step) for name in ("loss", "accuracy", "rate", "norm")}
        tracker.log(values, step)
        step += 1
    return step


def hang(server: MlflowServer) -> Callable[[], None]:
    server.freeze()
    return server.thaw


def die(server: MlflowServer) -> Callable[[], None]:
    server.kill()
    return server.start


@pytest.mark.parametrize("fall", [hang, die])
def test_an_outage_costs_the_training_thread_next_to_nothing(
    server: MlflowServer, job: Job, tmp_path: Path, fall: Callable[..., Callable[[], None]]
) -> None:
    """From the first step on: mlflow is imported meanwhile, and the machine's load sampled."""
    torch.set_num_threads(1)
    folder, begun = AttemptFolder(tmp_path, job.id, 1), time.monotonic()
    tracker = Tracker(server.uri, run_of(job), Spool(folder.metrics, []))
    tracker.start()
    step = train_for(tracker, 5)
    until(lambda: len(server.points(run_of(job))) > 0, 30, "MLflow has points")
    rise = fall(server)
    try:
        step = train_for(tracker, 5, step)
        tracker.submit("the end", uploads.end("KILLED"))
    finally:
        rise()
    train_for(tracker, 1, step)
    trained_s = time.monotonic() - begun
    assert tracker.finish(60) == "complete"
    print(f"{tracker.calls} calls: {tracker.spent_s / trained_s:.2%}, {tracker.longest_s * 1e3} ms")
    assert tracker.spent_s <= SHARE * trained_s
    assert tracker.longest_s <= LONGEST_S
    assert_all_there_once(server.points(run_of(job)), spooled(folder))
    assert len(spooled(folder)) > 400


@pytest.mark.parametrize("ended", ["FAILED", "KILLED", "FINISHED"])
def test_a_run_that_had_ended_runs_again_with_the_next_attempt(
    server: MlflowServer, job: Job, tmp_path: Path, ended: str
) -> None:
    runs = MlflowRuns(server.uri)
    client = runs._client
    client.set_terminated(run_of(job), ended)
    ended_at = client.get_run(run_of(job)).info.end_time
    attempt = Attempt(
        package_version="1",
        job=job.id,
        attempt=2,
        spec=DEMO,
        tracking_uri=server.uri,
        run_id=run_of(job),
    )
    uploads.start(attempt)(client, run_of(job))
    assert client.get_run(run_of(job)).info.status == "RUNNING"
    done = replace(job, state=State.SUCCEEDED, attempt=2, reason=Reason.COMPLETED)
    assert runs.close(done, AttemptFolder(tmp_path, job.id, 2))
    last = client.get_run(run_of(job))
    assert (last.info.status, last.data.tags["caps.attempt"]) == ("FINISHED", "2")
    assert last.info.end_time > ended_at


WORKER = """
import sys, time
from pathlib import Path
from workers.spool import Spool
from workers.tracking import Tracker
uri, run_id, metrics = sys.argv[1:]
tracker = Tracker(uri, run_id, Spool(Path(metrics), []))
tracker.start()
step = 0
while True:
    tracker.log({"loss": 1.0 / (step + 1), "accuracy": 0.5}, step)
    step += 1
    time.sleep(0.005)
"""


def test_the_control_plane_sends_what_a_killed_worker_left(
    server: MlflowServer, job: Job, tmp_path: Path
) -> None:
    folder = AttemptFolder(tmp_path, job.id, 1)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, server.uri, run_of(job), str(folder.metrics)]
    )
    try:
        until(lambda: len(server.points(run_of(job))) > 0, 60, "MLflow has points")
        server.freeze()
        wrote = len(spooled(folder))
        until(lambda: len(spooled(folder)) > wrote + 100, 30, "points that can't be sent")
        family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
    finally:
        worker.kill()
        worker.wait()
    until(lambda: not any(process.is_running() for process in family), 5, "its processes gone")
    with pytest.raises(Exception, match="MLflow"):
        MlflowRuns(server.uri).close(replace(job, state=State.FAILED), folder)
    server.thaw()
    sent, wrote = len(server.points(run_of(job))), len(spooled(folder))
    assert sent < wrote
    runs, failed = MlflowRuns(server.uri), replace(job, state=State.FAILED)
    while not runs.close(failed, folder):
        pass
    assert_all_there_once(server.points(run_of(job)), spooled(folder))
    closed = runs._client.get_run(run_of(job))
    assert closed.info.status == "FAILED"
    assert closed.data.tags["caps.tracking"].startswith("incomplete: ")


# --------------------------------------------------------------------------- the whole stack

OUTAGE_S = 180
STEPS_PER_EPOCH = 36
TRACKED = re.compile(r"tracking took ([\d.]+) s of ([\d.]+) s in (\d+) calls, the longest ([\d.]+)")


def outage(stack: Stack, seconds: float) -> None:
    """MLflow hangs for one half; for the other it is killed as often as it is started again."""
    hanging = tagged(stack.home, "mlflow")
    for process in hanging:
        process.suspend()
    time.sleep(seconds / 2)
    until_ = time.monotonic() + seconds / 2
    while time.monotonic() < until_:
        for process in tagged(stack.home, "mlflow"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.2)


def submit_training(client: CapsClient, epochs: int) -> JobView:
    """A job that has begun to train."""
    spec = TINY | {"name": "through-an-outage", "epochs": epochs, "keep": ["last"]}
    job = client.submit(spec)
    until(lambda: steps_of(client, job.id) >= 20, 180, "twenty steps")
    return client.job(job.id)


def steps_of(client: CapsClient, job: str) -> int:
    progress = client.job(job).progress
    return 0 if progress is None else progress.step or 0


def epochs_in(client: CapsClient, seconds: float) -> int:
    """How many epochs this machine trains in so long a time."""
    probe = submit_training(client, 10_000)
    before = steps_of(client, probe.id)
    time.sleep(15)
    steps = steps_of(client, probe.id) - before
    client.cancel(probe.id)
    client.wait(probe.id, timeout=60)
    return math.ceil(seconds / 15 * steps / STEPS_PER_EPOCH)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_three_minutes_without_mlflow_in_the_middle_of_a_job(
    stack: Stack, client: CapsClient
) -> None:
    job = submit_training(client, epochs_in(client, 1.5 * OUTAGE_S + 30))
    time.sleep(10)
    outage(stack, OUTAGE_S)
    assert client.job(job.id).state is State.RUNNING, "the outage lay in the middle of it"
    job = client.wait(job.id, timeout=700)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1), job.evidence
    assert job.result is not None
    assert job.result.tracking == "complete"

    log = "".join(chunk.text for chunk in client.follow_logs(job.id))
    told = TRACKED.search(log)
    assert told is not None, log
    spent_s, trained_s, calls, longest_ms = map(float, told.groups())
    print(f"{told[0]} ms: {spent_s / trained_s:.3%}")
    assert calls > OUTAGE_S / 2
    assert spent_s <= SHARE * trained_s
    assert longest_ms <= 1000 * LONGEST_S

    assert job.mlflow is not None
    run_id = job.mlflow.run_id
    until(lambda: tags_of(stack, run_id).get("caps.tracking") == "complete", 60, "it is closed")
    assert stack.mlflow().get_run(run_id).info.status == "FINISHED"
    folder = AttemptFolder(stack.home / "storage", job.id, 1)
    points = spooled(folder)
    rows = metric_rows(stack.home / "mlflow" / "mlflow.db", run_id)
    assert_all_there_once(rows, points)
    history = stack.mlflow().get_metric_history(run_id, "val/accuracy")
    found = [(point.step, point.value) for point in history]
    assert found == [(p.step, p.value) for p in points if p.name == "val/accuracy"]
    gaps = [b.timestamp_ms - a.timestamp_ms for a, b in pairwise(points)]
    assert max(gaps) < 60_000, "the training went on all the time"
    sheets = [file.path for file in stack.mlflow().list_artifacts(run_id, uploads.SHEETS)]
    assert len(sheets) == len(job.result.artifacts) > 0, "pictures of the outage are there too"


def tags_of(stack: Stack, run_id: str) -> dict[str, str]:
    return dict(stack.mlflow().get_run(run_id).data.tags)
