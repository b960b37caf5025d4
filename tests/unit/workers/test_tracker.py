"""What reaches MLflow: every point once, every task or its name; and what it costs the training."""

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from capsmodel.model import build_model
from support.nets import TINY_NET
from support.stack import until
from workers import uploads
from workers.attempt import Attempt
from workers.courier import Courier, Errand, Task, load_monitors, load_of, may_pass
from workers.shipper import Shipper
from workers.specs import TrainSpec
from workers.spool import Outgoing, Spool, points_from, system_spool
from workers.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.slow  # imports mlflow, and makes its database

LONGEST_S = 0.05
"""What one call may cost the training thread."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> "MlflowClient":
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    found = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found.create_experiment("tests", artifact_location=str(folder / "artifacts"))
    return found


@pytest.fixture
def run_id(client: "MlflowClient") -> str:
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return str(client.create_run(experiment.experiment_id).info.run_id)


def a_tracker(client: "MlflowClient", run_id: str, spool: Spool, *, apart: bool = False) -> Tracker:
    return Tracker(client.tracking_uri, run_id, spool, apart=apart)


@pytest.mark.parametrize("apart", [False, True], ids=["thread", "process"])
def test_a_point_arrives_once_also_after_a_resume(
    client: "MlflowClient", run_id: str, tmp_path: Path, apart: bool
) -> None:
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    first = a_tracker(client, run_id, Spool(paths[0], []), apart=apart)
    first.start()
    for step in (1, 2, 3):
        first.log({"loss": 1.0 / step}, step)
    assert first.finish(30) == "complete"
    Spool(paths[0], []).append({"loss": 0.25}, 4)  # on disk, but killed before it was sent

    second = a_tracker(client, run_id, Spool(paths[1], [paths[0]]), apart=apart)
    second.start()
    for step in (3, 4, 5):
        second.log({"loss": 1.0 / step}, step)
    assert second.finish(30) == "complete"
    history = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1.0 / s) for s in (1, 2, 3, 4, 5)]
    assert all(Outgoing(path, run_id).ship(lambda points: False) for path in paths)


def test_a_task_that_cannot_work_is_given_up_and_named(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    done: list[str] = []

    def broken(client: "MlflowClient", run_id: str) -> None:
        raise TypeError("not a picture")

    tracker = a_tracker(client, run_id, Spool(tmp_path / "1.jsonl", []))
    tracker.submit("the picture", broken)
    tracker.submit("the tag", lambda client, run: client.set_tag(run, "a", "b"))
    tracker.submit("the end", lambda client, run: done.append(run))
    tracker.start()
    tracker.log({"loss": 1.0}, 1)
    assert tracker.finish(10) == "incomplete: the picture: not a picture"
    assert done == [run_id]
    assert client.get_run(run_id).data.tags["a"] == "b"
    assert client.get_run(run_id).data.metrics["loss"] == 1.0


def test_a_server_that_is_away_costs_no_more_than_the_patience(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    def away(client: "MlflowClient", run_id: str) -> None:
        raise ConnectionError("refused")

    tracker = a_tracker(client, run_id, Spool(tmp_path / "1.jsonl", []))
    tracker.submit("the picture", away)
    tracker.start()
    begun = time.monotonic()
    assert tracker.finish(1) == "incomplete: the picture: refused"
    assert time.monotonic() - begun < 10


HANG_S = 30.0


def importing(courier: Courier) -> None:
    """The import of mlflow takes longer than the patience."""
    time.sleep(HANG_S)


def sending(client: "MlflowClient", run_id: str) -> None:
    """One call takes longer than the patience."""
    time.sleep(HANG_S)


def refused_then_hanging() -> Callable[["MlflowClient", str], None]:
    tries: list[str] = []

    def call(client: "MlflowClient", run_id: str) -> None:
        tries.append(run_id)
        if len(tries) == 1:
            raise ConnectionError("refused")
        time.sleep(HANG_S)

    return call


@pytest.mark.parametrize(
    ("call", "imports", "tells"),
    [
        (sending, False, "the attempt ended before MLflow was asked for anything"),
        (sending, True, "the picture: still being sent when the attempt had to end"),
        (refused_then_hanging(), True, "the picture: refused"),
    ],
    ids=["importing", "sending", "refused"],
)
def test_nothing_is_said_of_mlflow_but_what_it_did(
    client: "MlflowClient",
    run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[["MlflowClient", str], None],
    imports: bool,
    tells: str,
) -> None:
    """The patience may end before MLflow, which is up, was asked at all."""
    monkeypatch.setattr("workers.courier.RETRY_AFTER_S", 0.1)
    if not imports:
        monkeypatch.setattr(Courier, "_wait_for_metrics", importing)
    courier = Courier(an_errand(client, run_id, tmp_path))
    courier.submit(Task("the picture", call))
    courier.start()
    assert courier.finish(1.5) == f"incomplete: {tells}"


def test_points_that_were_not_sent_stay_for_the_next_sender(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    tracker = Tracker("http://127.0.0.1:9", "r", Spool(path, []))
    tracker.start()
    tracker.log({"loss": 1.0}, 1)
    assert tracker.finish(1).startswith("incomplete: ")
    left: list[str] = []
    assert Outgoing(path, "r").ship(lambda points: not left.extend(p.name for p in points))
    assert left == ["loss"]


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        ("INTERNAL_ERROR", True),
        ("TEMPORARILY_UNAVAILABLE", True),
        ("DEADLINE_EXCEEDED", True),
        ("RESOURCE_EXHAUSTED", True),
        ("PERMISSION_DENIED", True),
        ("BAD_REQUEST", True),
        ("INVALID_PARAMETER_VALUE", False),
        ("RESOURCE_DOES_NOT_EXIST", False),
    ],
)
def test_only_what_stays_refused_is_given_up(code: str, passes: bool) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    assert may_pass(MlflowException("no", ErrorCode.Value(code))) is passes


def test_a_network_may_come_back_and_a_mistake_does_not() -> None:
    assert may_pass(ConnectionError("refused"))
    assert may_pass(TimeoutError())
    assert not may_pass(TypeError("not a picture"))


# ------------------------------------------------------------------- the process of its own


@contextmanager
def a_shipper(errand: Errand) -> Iterator[tuple[Shipper, psutil.Process]]:
    """A running one, and its process; nothing is left of it."""
    before = set(psutil.Process().children())
    shipper = Shipper(errand)
    shipper.start()
    (process,) = set(psutil.Process().children()) - before
    yield shipper, process
    if process.is_running():
        process.resume()
        process.kill()


def an_errand(client: "MlflowClient", run_id: str, folder: Path) -> Errand:
    return Errand(client.tracking_uri, run_id, folder / "metrics.jsonl")


def test_calls_are_made_in_order_by_a_process_that_ends(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"t": 1, "step": 1, "values": {"loss": 1.0}}\n')
    with a_shipper(an_errand(client, run_id, tmp_path)) as (shipper, process):
        process.send_signal(signal.SIGTERM)  # to the whole group, when Ray stops a job
        shipper.submit(Task("the end", uploads.end("FAILED")))
        shipper.submit(Task("the end", uploads.end("KILLED")))
        assert shipper.finish(60) == "complete"
        assert not process.is_running()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0})


def test_what_cannot_be_handed_over_is_named_and_stops_nothing(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    with a_shipper(an_errand(client, run_id, tmp_path)) as (shipper, _):
        shipper.submit(Task("the picture", lambda client, run: None))
        shipper.submit(Task("the end", uploads.end("KILLED")))
        assert shipper.finish(60).startswith("incomplete: the picture: ")
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_process_that_dies_stops_nothing(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    with a_shipper(an_errand(client, run_id, tmp_path)) as (shipper, process):
        process.kill()
        for _ in range(3):
            shipper.submit(Task("the end", uploads.end("KILLED")))
            time.sleep(0.1)
        begun = time.monotonic()
        assert shipper.finish(60) == "incomplete: the process that sends to MLflow died"
        assert time.monotonic() - begun < 5


def test_a_process_that_hangs_costs_the_training_nothing(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    """More than its connection holds is submitted meanwhile."""
    with a_shipper(an_errand(client, run_id, tmp_path)) as (shipper, process):
        process.suspend()
        took = []
        for number in range(3000):
            begun = time.monotonic()
            shipper.submit(Task(f"{number}" * 100, uploads.end("RUNNING")))
            took.append(time.monotonic() - begun)
        # To wait for the process would be for good; the machine may do something else now and then.
        assert sorted(took)[-3] < LONGEST_S
        begun = time.monotonic()
        assert shipper.finish(1) == (
            "incomplete: the process that sends to MLflow did not come to an end in time"
        )
        assert time.monotonic() - begun < 4
        assert not process.is_running()


def test_whoever_is_in_a_hurry_does_not_wait(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    with a_shipper(an_errand(client, run_id, tmp_path)) as (shipper, process):
        process.suspend()
        begun = time.monotonic()
        answer = shipper.finish(60, hurry=lambda: True)
        assert answer == "incomplete: the job was stopped while its last words were sent"
        assert time.monotonic() - begun < 4


PARENT = """
import sys, time
from pathlib import Path
from workers.courier import Errand
from workers.shipper import Shipper
shipper = Shipper(Errand("http://127.0.0.1:9", "r", Path(sys.argv[1])))
shipper.start()
print(shipper._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("importing", [False, True], ids=["waiting", "sending"])
def test_it_dies_with_its_parent(tmp_path: Path, importing: bool) -> None:
    metrics = tmp_path / "metrics.jsonl"
    if importing:
        metrics.write_text('{"t": 1, "step": 1, "values": {"loss": 1.0}}\n')
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(metrics)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(3 if importing else 0.5)
    assert child.is_running()
    parent.kill()
    parent.wait()
    until(lambda: not child.is_running() or child.status() == "zombie", 2, "the process is gone")


# ------------------------------------------------------------------------ costs and samples


def test_the_training_threads_share_is_counted(tmp_path: Path) -> None:
    tracker = Tracker("http://127.0.0.1:9", "r", Spool(tmp_path / "1.jsonl", []), apart=False)

    def slowly(append: Callable[..., None], values: dict[str, float], step: int) -> None:
        time.sleep(0.03 * step)
        append(values, step)

    spool = tracker._spool
    spool.append = partial(slowly, spool.append)  # type: ignore[method-assign]
    for step in (1, 3, 2):
        tracker.log({"loss": 1.0}, step)
    tracker.submit("nothing", lambda client, run: None)
    assert tracker.calls == 4
    assert 0.18 <= tracker.spent_s < 0.5
    assert 0.09 <= tracker.longest_s < 0.15


@pytest.mark.usefixtures("client")
def test_the_machines_load_has_mlflows_names() -> None:
    load = load_of(load_monitors())
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes"):
        assert load[f"system/{name}"] >= 0
    total = psutil.virtual_memory().total / 1e6
    assert 0 < load["system/system_memory_usage_megabytes"] < total


def test_samples_of_a_later_attempt_follow_the_earlier_ones(
    client: "MlflowClient", run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.courier.SAMPLE_EVERY_S", 0.05)
    paths: list[Path] = []
    for number in (1, 2):
        path = tmp_path / str(number) / "metrics.jsonl"
        tracker = a_tracker(client, run_id, Spool(path, [*reversed(paths)]))
        tracker.start()
        tracker.log({"loss": 1.0}, number)
        paths.append(path)
        until(lambda path=path: len(points_from(system_spool(path), 0)[0]) > 20, 30, "samples")
        assert tracker.finish(30) == "complete"
    sent = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in sent] == [*range(len(sent))]
    assert len(sent) > 4


def test_every_call_of_a_training_can_be_handed_over(tmp_path: Path) -> None:
    spec = TrainSpec.model_validate_json('{"dataset": {"type": "mnist-5k"}}')
    attempt = Attempt(
        package_version="1", job="j", attempt=1, spec=spec, tracking_uri="http://m", run_id="r"
    )
    images = torch.zeros(2, 1, 28, 28)
    data: Any = SimpleNamespace(
        sha256="ab", facts={"overlap": 0.5}, train_images=images, test_images=images
    )
    outcome: Any = SimpleNamespace(epoch=1, step=2, stopped="finished")
    info: Any = SimpleNamespace(path=tmp_path / "best.pt")
    for call in (
        uploads.start(attempt),
        uploads.end("FAILED"),
        uploads.log_dataset("mnist", data),
        uploads.log_picture(tmp_path / "a.png", "a", 1),
        uploads.log_checkpoint("best", info),
        uploads.log_model(build_model(TINY_NET), spec, tmp_path / "model"),
        uploads.log_summary({"test/accuracy": 0.5}, outcome, [tmp_path / "a.png"]),
    ):
        handed_over = pickle.dumps(Task("a call", call))
        assert len(handed_over) < 10_000, "no picture and no data go this way"
        assert pickle.loads(handed_over).call.args == call.args  # type: ignore[attr-defined]
