"""Searches, all the way through: REST, queue, Tune, trials, MLflow."""

import json
import statistics
from typing import Any

import pytest

from service.api.search_views import SearchView
from service.client import CapsClient
from service.queue.job import State
from support.stack import TINY, Stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

BASE = {key: value for key, value in TINY.items() if key not in ("name", "experiment")} | {
    "resources": {"cpus_per_worker": 1}
}
SEARCH: dict[str, Any] = {
    "name": "short",
    "experiment": "searches",
    "labels": {"team": "tests"},
    "base": BASE | {"epochs": 3},
    "space": {
        "model.routing.iterations": {"type": "choice", "values": [1, 2, 3, 5]},
        "loss.reconstruction_weight": {"type": "loguniform", "low": 1e-5, "high": 1e-2},
        "loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.2},
    },
    "trials": 5,
    "concurrency": 2,
    "scheduler": {"type": "asha", "reduction_factor": 2},
    "keep_top": 2,
}
GRID: dict[str, Any] = {
    "name": "grid",
    "experiment": "searches",
    "base": BASE,
    "space": {
        "model.routing.iterations": {"type": "grid", "values": [1, 3]},
        "loss.reconstruction_weight": {"type": "grid", "values": [0, 0.0005]},
    },
    "algorithm": {"type": "grid"},
    "seeds": 3,
    "concurrency": 2,
}
"""The paper's two by two: routing once or three times, with and without reconstruction."""


def run(stack: Stack, document: dict[str, Any]) -> SearchView:
    with stack.client() as client:
        return client.wait_search(client.submit_search(document).id, timeout=240)


def artifacts(stack: Stack, run_id: str, folder: str = "") -> set[str]:
    return {entry.path.split("/")[-1] for entry in stack.mlflow().list_artifacts(run_id, folder)}


@pytest.fixture(scope="module")
def done(stack: Stack) -> SearchView:
    """A search with a scheduler, at its end."""
    search = run(stack, SEARCH)
    assert search.state is State.SUCCEEDED, search.evidence
    return search


def test_a_search_has_a_leaderboard(client: CapsClient, done: SearchView) -> None:
    trials = list(client.trials(done.id))
    assert sorted(trial.number for trial in trials) == [0, 1, 2, 3, 4]
    assert {trial.state for trial in trials} <= {"SUCCEEDED", "PRUNED"}
    scores = [trial.score for trial in trials]
    assert all(score is not None and score > 0.1 for score in scores)
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    best = client.configurations(done.id)[0]
    assert best.mean == scores[0]
    assert done.result is not None
    assert done.result.metrics["score"] == scores[0]
    assert done.counts.total == 5


def test_the_runs_are_nested_and_closed(stack: Stack, client: CapsClient, done: SearchView) -> None:
    assert done.mlflow is not None
    mlflow = stack.mlflow()
    parent = mlflow.get_run(done.mlflow.run_id)
    assert parent.info.status == "FINISHED"
    nested = f"tags.`mlflow.parentRunId` = '{done.mlflow.run_id}'"
    children = mlflow.search_runs([done.mlflow.experiment_id], nested)
    assert {child.info.status for child in children} == {"FINISHED"}
    trials = {trial.number: trial for trial in client.trials(done.id)}
    assert sorted(int(child.data.tags["caps.trial"]) for child in children) == sorted(trials)
    for child in children:
        trial = trials[int(child.data.tags["caps.trial"])]
        assert child.data.tags["caps.search"] == done.id
        assert child.data.tags["team"] == "tests"
        assert child.data.params["loss.m_minus"] == str(trial.values["loss.m_minus"])
        assert child.data.metrics["score"] == trial.score
        history = mlflow.get_metric_history(child.info.run_id, "val/accuracy")
        assert [point.step for point in history] == [36 * n for n in range(1, trial.epoch + 1)]
        assert not any(name.startswith("test") for name in child.data.metrics)


def test_the_parent_run_has_plots_and_the_best_trials_their_sheets(
    stack: Stack, client: CapsClient, done: SearchView
) -> None:
    assert done.mlflow is not None
    report = artifacts(stack, done.mlflow.run_id, "report")
    for plot in ("parallel-coordinates", "parameter-importances", "learning-curves"):
        assert {f"{plot}.html", f"{plot}.png"} <= report
    assert {"comparison.png", "leaderboard.md", "trials.csv", "trials.json"} <= report
    note = stack.mlflow().get_run(done.mlflow.run_id).data.tags["mlflow.note.content"]
    assert "## Results" in note
    assert "comparison.png" in note
    best, second, third, *_ = [
        trial.mlflow.run_id for trial in client.trials(done.id) if trial.mlflow
    ]
    for run_id in (best, second):
        assert artifacts(stack, run_id, "checkpoints/best") == {"best.pt", "best.pt.json"}
        assert any("reconstruction-sheet" in name for name in artifacts(stack, run_id, "sheets"))
        assert len(stack.mlflow().get_run(run_id).outputs.model_outputs) == 1
    assert artifacts(stack, third) == set()


def test_the_best_is_promoted_to_a_job(client: CapsClient, done: SearchView) -> None:
    job = client.promote(done.id, changes={"epochs": 1})
    best = client.configurations(done.id)[0]
    assert job.spec["loss"]["m_minus"] == best.values["loss.m_minus"]
    assert job.labels["search"] == done.id
    job = client.wait(job.id, timeout=120)
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    assert "test/accuracy" in job.result.metrics


@pytest.mark.long
def test_a_grid_gives_a_table_of_means_and_deviations(stack: Stack) -> None:
    search = run(stack, GRID)
    assert search.state is State.SUCCEEDED, search.evidence
    assert search.mlflow is not None
    mlflow = stack.mlflow()
    nested = f"tags.`mlflow.parentRunId` = '{search.mlflow.run_id}'"
    children = mlflow.search_runs([search.mlflow.experiment_id], nested)
    assert len(children) == 12
    cells: dict[str, list[float]] = {}
    for child in children:
        cells.setdefault(child.data.tags["caps.configuration"], []).append(
            max(p.value for p in mlflow.get_metric_history(child.info.run_id, "val/accuracy"))
        )
    table = mlflow.download_artifacts(search.mlflow.run_id, "report/grid.md")
    with open(table) as file:
        text = file.read()
    for scores in cells.values():
        mean, deviation = 100 * statistics.fmean(scores), 100 * statistics.stdev(scores)
        assert f"{mean:.2f} ± {deviation:.2f}" in text
    assert "grid.png" in artifacts(stack, search.mlflow.run_id, "report")


def test_failed_trials_are_marked_and_run_again_on_request(
    stack: Stack, client: CapsClient
) -> None:
    space = {
        "optimizer.learning_rate": {"type": "choice", "values": [1e-3, 1e6]},
        "dataset": {
            "type": "choice",
            "values": [{"type": "mnist-5k"}, {"type": "fashion-mnist"}],
        },
    }
    # A CNN's loss has no bound: at 1e6 it is NaN in the second step.
    net = {"type": "cnn", "channels": [8, 8], "kernels": [5, 5], "hidden": [16]}
    base = BASE | {"model": net}
    document = SEARCH | {"name": "failing", "base": base, "space": space, "trials": None}
    document |= {
        "algorithm": {"type": "grid"},
        "space": {path: each | {"type": "grid"} for path, each in space.items()},
        "scheduler": {"type": "asha", "reduction_factor": 2},
    }
    search = run(stack, document)
    assert search.state is State.SUCCEEDED, search.evidence
    failed = {trial.number: trial for trial in client.trials(search.id, states=["FAILED"])}
    missing = [t for t in failed.values() if t.values["dataset"]["type"] == "fashion-mnist"]
    assert [trial.reason for trial in missing] == ["data-missing"] * 2
    assert all(trial.hint and "CAPS_DATA_DIR" in trial.hint for trial in missing)
    (diverged,) = (t for t in failed.values() if t not in missing)
    assert diverged.reason == "diverged"
    assert diverged.values["optimizer.learning_rate"] == 1e6
    assert "not finite at step" in diverged.evidence
    (sound,) = (t for t in client.trials(search.id) if t.number not in failed)
    assert sound.state == "SUCCEEDED"  # NaN has not cut it off
    assert sound.values["optimizer.learning_rate"] == 1e-3

    again = client.retry_failed(search.id)
    assert again.state is State.QUEUED
    search = client.wait_search(search.id, timeout=200)
    assert search.attempt == 2
    retried = {trial.number: trial for trial in client.trials(search.id, states=["FAILED"])}
    assert set(retried) == set(failed)
    assert {trial.attempt for trial in retried.values()} == {2}
    untouched = {trial.number: trial for trial in client.trials(search.id)}
    assert untouched[sound.number].attempt == 1


def test_a_cancelled_search_leaves_nothing_running(stack: Stack, client: CapsClient) -> None:
    search = client.submit_search(SEARCH | {"base": BASE | {"epochs": 500}})
    until(lambda: client.search(search.id).counts.running == 2, 90, "two trials")
    until(lambda: stack.trials(search.id), 30, "their processes")
    client.cancel(search.id)
    until(lambda: not stack.trials(search.id), 20, "their processes gone")
    ended = client.wait_search(search.id, timeout=20)
    assert ended.state is State.CANCELLED
    assert ended.mlflow is not None
    mlflow, nested = stack.mlflow(), f"tags.`mlflow.parentRunId` = '{ended.mlflow.run_id}'"

    def open_runs() -> list[str]:
        runs = [mlflow.get_run(ended.mlflow.run_id)]
        runs += mlflow.search_runs([ended.mlflow.experiment_id], nested)
        return [run.info.run_id for run in runs if run.info.status == "RUNNING"]

    until(lambda: not open_runs(), 30, "no run open")
    assert {t.state for t in client.trials(ended.id)} == {"CANCELLED"}


@pytest.mark.long
def test_a_budget_ends_a_search_well(client: CapsClient) -> None:
    document = SEARCH | {"base": BASE | {"epochs": 500}, "budget": {"max_runtime_s": 15}}
    search = client.wait_search(client.submit_search(document).id, timeout=150)
    assert search.state is State.SUCCEEDED, search.evidence
    assert "budget.max_runtime_s = 15 is over" in search.evidence
    cut = list(client.trials(search.id, states=["CANCELLED"]))
    assert cut
    assert {trial.reason for trial in cut} == {"budget"}


def test_a_bad_space_is_refused_at_its_path(stack: Stack) -> None:
    document = json.dumps(SEARCH | {"space": {"model.ruting": {"type": "choice", "values": [1]}}})
    answer = stack.capsctl("search", "-", input=document)
    assert answer.returncode == 2
    assert "/space/model.ruting" in answer.stderr
