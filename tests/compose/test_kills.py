"""Each part is killed under a running search: it comes back by itself, and the search goes on."""

import time
from typing import Any

import pytest
from mlflow.entities import Run

from service.client import CapsClient
from service.queue.job import State
from support.compose import Deployment, metric_steps
from support.stack import TINY, until
from workers.trials import TrialState

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

VICTIMS = ("api", "mlflow", "postgres", "ray-head")
SEARCH: dict[str, Any] = {
    "name": "killed-under",
    "experiment": "kills",
    "base": {
        key: value for key, value in TINY.items() if key not in ("name", "experiment", "epochs")
    }
    | {"epochs": 12, "artifacts": [], "resources": {"cpus_per_worker": 1}},
    "space": {"optimizer.learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-2}},
    "trials": 10,
    "concurrency": 2,
}


def finished_trials(client: CapsClient, search: str) -> int:
    return sum(trial.state == TrialState.SUCCEEDED for trial in client.trials(search))


def test_whatever_is_killed_comes_back(deployment: Deployment) -> None:
    with deployment.client() as client:
        search = client.submit_search(SEARCH)
        until(lambda: client.search(search.id).state == State.RUNNING, 60, "it runs")
        times = {}
        for victim in VICTIMS:
            finished = finished_trials(client, search.id)
            until(lambda n=finished: finished_trials(client, search.id) > n, 240, "a trial ends")
            assert client.search(search.id).state == State.RUNNING, "the search was too short"
            container = deployment.container(victim)
            killed, began = deployment.kill(container), time.monotonic()
            until(lambda c=container, k=killed: deployment.is_back(c, k), 60, f"{victim} is back")
            until(deployment.ready, 180, f"all answers after {victim} was killed")
            times[victim] = time.monotonic() - began
        search = client.wait_search(search.id, timeout=600)
        print({victim: f"all answered after {seconds:.1f} s" for victim, seconds in times.items()})
        assert search.state is State.SUCCEEDED, search.evidence
        events = [event.type for event in client.events(search.id)]
        attempts = client.attempts(search.id)
    # Only the head's death costs an attempt: the search's driver lived on it.
    assert len(attempts) == 2, events
    assert events.count("submitted") == events.count("succeeded") == 1
    assert events.count("started") == 2
    assert search.mlflow is not None
    _each_trial_once(deployment, search.mlflow.run_id)


def _each_trial_once(deployment: Deployment, parent: str) -> None:
    """One finished run a trial, and every point of it once."""
    mlflow = deployment.mlflow()
    until(lambda: mlflow.get_run(parent).info.status == "FINISHED", 60, "the run is closed")
    experiment = mlflow.get_run(parent).info.experiment_id
    children: list[Run] = mlflow.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=100
    )
    numbers = [run.data.tags["caps.trial"] for run in children]
    assert sorted(numbers, key=int) == [str(number) for number in range(SEARCH["trials"])]
    for run in children:
        assert run.info.status == "FINISHED"
        steps = metric_steps(mlflow, run.info.run_id, ["val/accuracy", "train/total_loss"])
        assert len(steps["val/accuracy"]) == SEARCH["base"]["epochs"]
        for name, found in steps.items():
            assert len(found) == len(set(found)), f"{name} of {run.info.run_name}: {found}"
