"""A job with two workers trains in two containers, and survives the death of one."""

import json
from typing import Any

import pytest

from service.client import CapsClient
from service.queue.job import State
from support.compose import Deployment, metric_steps
from support.stack import TINY, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PAIR: dict[str, Any] = TINY | {
    "name": "pair",
    "epochs": 12,
    "artifacts": [],
    "checkpoint_every_s": 5,
    "resources": {"workers": 2, "cpus_per_worker": 1},
}


def hosts(deployment: Deployment, job: str, attempt: int) -> dict[str, str]:
    """The host of each process that an attempt has registered, by role."""
    folder = deployment.volume("storage") / "jobs" / job / str(attempt) / "processes"
    records = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
    return {record["role"]: record["host"] for record in records}


def test_a_container_is_killed_in_mid_epoch(deployment: Deployment) -> None:
    with deployment.client() as client:
        job = client.submit(PAIR)

        def trains() -> bool:
            progress = client.job(job.id).progress
            return progress is not None and progress.epoch >= 3

        until(trains, 240, "two epochs are trained")
        of = hosts(deployment, job.id, 1)
        assert of["rank-0"] != of["rank-1"]
        assert of["driver"] not in (of["rank-0"], of["rank-1"])
        first, second = deployment.containers("ray-worker")
        assert training_processes(deployment, first) == 1
        assert training_processes(deployment, second) == 1

        before = client.job(job.id).progress
        killed = deployment.kill(second)
        until(lambda: deployment.is_back(second, killed), 60, "the container is started again")
        job = client.wait(job.id, timeout=420)
        assert job.state is State.SUCCEEDED, job.evidence
        assert job.attempt == 2
        (lost,) = [event for event in client.events(job.id) if event.type == "requeued"]
        assert "-lost" in lost.message
        attempts = client.attempts(job.id)
        assert before is not None
        assert attempts[1].resumed_step
        assert attempts[1].resumed_step > 0
    assert job.mlflow is not None
    of = hosts(deployment, job.id, 2)
    assert of["rank-0"] != of["rank-1"]
    steps = metric_steps(
        deployment.mlflow(), job.mlflow.run_id, ["val/accuracy", "train/total_loss"]
    )
    assert len(steps["val/accuracy"]) == PAIR["epochs"]
    for name, found in steps.items():
        assert len(found) == len(set(found)), f"a point of {name} was told twice"


def test_a_container_that_is_stopped_leaves_a_checkpoint_first(deployment: Deployment) -> None:
    """No step is lost, though none was to be saved for an hour."""
    stopped = deployment.containers("ray-worker")[1]
    with deployment.client() as client:
        job = client.submit(PAIR | {"epochs": 1_000, "checkpoint_every_s": 3600})

        def step() -> int:
            progress = client.job(job.id).progress
            return 0 if progress is None else progress.step

        until(lambda: step() > 50, 240, "it trains")
        before = step()
        deployment.run("stop", "--time", "40", stopped)
        deployment.run("start", stopped)
        until(lambda: _resumed_step(client, job.id), 180, "it goes on")
        assert _resumed_step(client, job.id) >= before
        client.cancel(job.id)
        assert client.wait(job.id, timeout=120).state is State.CANCELLED


def _resumed_step(client: CapsClient, job: str) -> int:
    """From which step its second attempt goes on; 0 as long as there is none."""
    attempts = client.attempts(job)
    return (attempts[1].resumed_step or 0) if len(attempts) > 1 else 0


def training_processes(deployment: Deployment, container: str) -> int:
    """Actors of Ray Train's in a container."""
    listed = deployment.run("top", container, "args")
    return sum("RayTrainWorker" in line for line in listed.splitlines())
