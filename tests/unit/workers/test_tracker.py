"""What reaches MLflow: every point once, every task or its name."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workers.spool import Spool
from workers.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.slow  # imports mlflow, and makes its database


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


def a_tracker(client: "MlflowClient", run_id: str, spool: Spool) -> Tracker:
    return Tracker(client.tracking_uri, run_id, spool)


def test_a_point_arrives_once_also_after_a_resume(
    client: "MlflowClient", run_id: str, tmp_path: Path
) -> None:
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    first = a_tracker(client, run_id, Spool(paths[0], []))
    first.start()
    for step in (1, 2, 3):
        first.log({"loss": 1.0 / step}, step)
    assert first.finish(10) == "complete"
    Spool(paths[0], []).append({"loss": 0.25}, 4)  # on disk, but killed before it was sent

    second = a_tracker(client, run_id, Spool(paths[1], [paths[0]]))
    second.start()
    for step in (3, 4, 5):
        second.log({"loss": 1.0 / step}, step)
    assert second.finish(10) == "complete"
    history = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1.0 / s) for s in (1, 2, 3, 4, 5)]


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
