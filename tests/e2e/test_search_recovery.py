"""Searches whose driver, trials or cluster die: they end as if nothing had been."""

import random
from typing import Any

import pytest

from service.api.search_views import SearchView
from service.client import CapsClient
from service.queue.job import State
from service.stack.processes import tagged
from support.stack import TINY, Stack, until
from workers.attempt import AttemptFolder
from workers.trials import TrialState, TrialTable, read_trials

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

BASE = {key: value for key, value in TINY.items() if key not in ("name", "experiment")} | {
    "resources": {"cpus_per_worker": 1},
    "epochs": 4,
}
GRID: dict[str, Any] = {
    "name": "killed",
    "experiment": "searches",
    "base": BASE,
    "space": {
        "model.routing.iterations": {"type": "grid", "values": [1, 2, 3]},
        "loss.reconstruction_weight": {"type": "grid", "values": [0, 0.0005]},
    },
    "algorithm": {"type": "grid"},
    "concurrency": 2,
}
ASHA = GRID | {
    "space": {
        "optimizer.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
        "loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.2},
    },
    "algorithm": {"type": "random"},
    "trials": 8,
    "scheduler": {"type": "asha", "reduction_factor": 2},
}


def table(stack: Stack, search: SearchView) -> TrialTable:
    return read_trials(AttemptFolder(stack.home / "storage", search.id, search.attempt))


def curves(found: TrialTable) -> dict[int, dict[int, float | None]]:
    """The metric of every epoch of every trial."""
    return {
        number: {report.epoch: report.metrics["val/accuracy"] for report in reports}
        for number, reports in found.reports.items()
    }


def run(stack: Stack, document: dict[str, Any]) -> TrialTable:
    with stack.client() as client:
        search = client.wait_search(client.submit_search(document).id, timeout=300)
    assert search.state is State.SUCCEEDED, search.evidence
    return table(stack, search)


def run_killed(stack: Stack, document: dict[str, Any], kills: int) -> SearchView:
    """The same, with its driver killed at random instants, each time after some progress."""
    chance = random.Random()
    with stack.client() as client:
        search = client.submit_search(document)
        for kill in range(1, kills + 1):
            reported = sum(map(len, table(stack, client.search(search.id)).reports.values()))
            wanted = reported + chance.randint(1, 5)

            def told(wanted: int = wanted) -> bool:
                found = table(stack, client.search(search.id))
                return sum(map(len, found.reports.values())) >= wanted

            until(told, 120, f"{wanted} reports")
            for process in stack.workers(search.id):
                process.kill()
            until(lambda kill=kill: client.search(search.id).attempt > kill, 60, "a new attempt")
        return client.wait_search(search.id, timeout=300)


def check_runs(stack: Stack, search: SearchView, trials: int) -> None:
    """One closed run a trial, every point in it once."""
    assert search.mlflow is not None
    mlflow = stack.mlflow()
    nested = f"tags.`mlflow.parentRunId` = '{search.mlflow.run_id}'"
    children = mlflow.search_runs([search.mlflow.experiment_id], nested)
    assert {child.info.status for child in children} == {"FINISHED"}
    assert sorted(int(child.data.tags["caps.trial"]) for child in children) == list(range(trials))
    for child in children:
        for name in ("val/accuracy", "train/total_loss"):
            steps = [point.step for point in mlflow.get_metric_history(child.info.run_id, name)]
            assert len(set(steps)) == len(steps), (child.info.run_name, name)


@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_driver_changes_nothing(stack: Stack, kills: int) -> None:
    expected = run(stack, GRID)
    search = run_killed(stack, GRID, kills)
    assert search.state is State.SUCCEEDED, search.evidence
    assert search.attempt == kills + 1
    found = table(stack, search)
    assert {n: t.state for n, t in found.trials.items()} == dict.fromkeys(
        range(6), TrialState.SUCCEEDED
    )
    assert {n: t.score for n, t in found.trials.items()} == {
        n: t.score for n, t in expected.trials.items()
    }
    assert curves(found) == curves(expected)
    check_runs(stack, search, 6)


def test_rungs_outlive_the_driver(stack: Stack) -> None:
    expected = run(stack, ASHA)
    search = run_killed(stack, ASHA, kills=2)
    assert search.state is State.SUCCEEDED, search.evidence
    found = table(stack, search)
    assert {t.values["loss.m_minus"] for t in found.trials.values()} == {
        t.values["loss.m_minus"] for t in expected.trials.values()
    }
    for number, epochs in curves(found).items():
        both = epochs.keys() & curves(expected)[number].keys()
        assert both
        assert {e: epochs[e] for e in both} == {e: curves(expected)[number][e] for e in both}
    assert found.count(TrialState.PRUNED) >= 1
    check_runs(stack, search, 8)


def test_a_killed_trial_goes_on_and_one_killed_again_fails(
    stack: Stack, client: CapsClient
) -> None:
    document = GRID | {"base": BASE | {"epochs": 12}, "concurrency": 1, "keep_top": 1}
    document["space"] = {"model.routing.iterations": {"type": "grid", "values": [1, 2]}}
    search = client.submit_search(document)

    def kill_at(number: int, epoch: int) -> None:
        until(
            lambda: table(stack, client.search(search.id)).trials[number].epoch >= epoch,
            120,
            f"epoch {epoch} of trial {number}",
        )
        (process,) = stack.trials(search.id, actors=True)
        process.kill()

    until(lambda: 0 in table(stack, client.search(search.id)).trials, 60, "a trial")
    kill_at(0, 2)
    kill_at(0, 5)
    until(lambda: 1 in table(stack, client.search(search.id)).trials, 60, "the next trial")
    kill_at(1, 3)
    search = client.wait_search(search.id, timeout=200)
    assert search.state is State.SUCCEEDED, search.evidence
    assert search.attempt == 1
    first, second = sorted(client.trials(search.id), key=lambda trial: trial.number)
    assert (first.state, first.reason, first.losses) == ("FAILED", "worker-lost", 1)
    assert (second.state, second.losses, second.epoch) == ("SUCCEEDED", 1, 12)
    assert "resumed from" in client.trial_log(search.id, 1).text


def test_a_head_killed_changes_nothing(stack: Stack) -> None:
    expected = run(stack, GRID)
    with stack.client() as client:
        search = client.submit_search(GRID)
        until(lambda: len(table(stack, client.search(search.id)).reports) >= 2, 120, "two trials")
        for process in tagged(stack.home, "ray"):
            process.kill()
        search = client.wait_search(search.id, timeout=500)
    assert search.state is State.SUCCEEDED, search.evidence
    found = table(stack, search)
    assert found.count(TrialState.SUCCEEDED) == 6
    assert curves(found) == curves(expected)
    check_runs(stack, search, 6)
