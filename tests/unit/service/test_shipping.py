"""What a dead worker left unsent: sent once, in slices, before its run is closed."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import runs as runs_module
from service.errors import TrackingUnavailableError
from service.queue.job import AnySpec, Desired, Job, State
from service.runs import MlflowRuns
from service.testing.mlflow import FakeMlflow, FakeRun
from service.testing.mlflow_server import serve_mlflow
from support.search_books import choose, fail, make_attempt, make_spec, open_book, run, succeed
from workers.attempt import AttemptFolder, Reason, Result
from workers.child_runs import ChildRuns
from workers.specs import PRESETS
from workers.spool import Outgoing, Spool, system_spool
from workers.trials import trial_folder

DEMO = PRESETS["demo"]
SEARCH = make_spec(seeds=2, trials=4)


@pytest.fixture
def mlflow() -> FakeMlflow:
    return FakeMlflow()


@pytest.fixture
def tracking(mlflow: FakeMlflow) -> Iterator[MlflowRuns]:
    with serve_mlflow(mlflow) as uri:
        yield MlflowRuns(uri)


def a_job(runs: MlflowRuns, spec: AnySpec = DEMO, name: str = "j1", attempt: int = 1) -> Job:
    """A job that was killed in an attempt, and has its run."""
    job = Job(name, spec, Desired.RUN, State.FAILED, attempt, 1, created_at=0.0, updated_at=0.0)
    experiment_id, run_id = runs.ensure(job)
    lost = Reason.WORKER_LOST
    return replace(job, experiment_id=experiment_id, run_id=run_id, reason=lost)


def measure(folder: AttemptFolder, *steps: int) -> None:
    """What a worker leaves."""
    earlier = [each.metrics for each in folder.earlier()]
    spool = Spool(folder.metrics, earlier)
    for step in steps:
        spool.append({"loss": 1.0 / (step + 1), "accuracy": 0.5}, step)
    spool.close()
    load = Spool(system_spool(folder.metrics), [system_spool(each) for each in earlier])
    load.append({"system/cpu": 50.0}, load.last_step + 1)
    load.close()


def steps(run_: FakeRun, name: str = "loss") -> list[int]:
    """In order; a step that is there twice is so here."""
    return sorted(step for key, _, _, step in run_.points if key == name)


def test_all_attempts_points_are_there_once_before_the_run_is_closed(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path
) -> None:
    job = a_job(tracking, attempt=2)
    first, last = (AttemptFolder(tmp_path, "j1", number) for number in (1, 2))
    measure(first, 0, 1)
    assert job.run_id is not None
    Outgoing(first.metrics, job.run_id).ship(lambda points: True)  # its own worker's work
    measure(last, 1, 2, 3)
    assert tracking.close(job, last)
    found = mlflow.runs[job.run_id]
    assert steps(found) == steps(found, "accuracy") == [2, 3]
    assert steps(found, "system/cpu") == [0, 1]
    assert found.status == "FAILED"
    assert found.tags["caps.state"] == "FAILED"
    assert found.tags["caps.tracking"].startswith("incomplete: of pictures, models")
    assert found.tags["caps.tracking"].endswith("its last attempt left no result")
    before = set(found.points)
    assert tracking.close(job, last)
    assert found.points == before


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("complete", "complete"),
        (
            "incomplete: MLflow does not answer",
            "incomplete: of pictures, models and checkpoints some may be missing; "
            "incomplete: MLflow does not answer",
        ),
    ],
)
def test_the_run_says_what_may_be_missing(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path, said: str, told: str
) -> None:
    job = replace(a_job(tracking), state=State.SUCCEEDED, reason=Reason.COMPLETED)
    folder = AttemptFolder(tmp_path, "j1", 1)
    measure(folder, 0)
    folder.write_result(Result(outcome="succeeded", reason=Reason.COMPLETED, tracking=said))
    assert tracking.close(job, folder)
    assert job.run_id is not None
    assert mlflow.runs[job.run_id].tags["caps.tracking"] == told
    assert mlflow.runs[job.run_id].status == "FINISHED"


@pytest.mark.parametrize("result", ["{", '{"schema_version": 999}'])
def test_a_result_that_nobody_can_read_holds_nothing_up(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path, result: str
) -> None:
    job, folder = a_job(tracking), AttemptFolder(tmp_path, "j1", 1)
    measure(folder, 0)
    (folder.path / "result.json").write_text(result)
    assert tracking.close(job, folder)
    assert job.run_id is not None
    assert mlflow.runs[job.run_id].tags["caps.tracking"].startswith("incomplete: ")


def test_an_attempt_that_left_nothing_is_closed(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path
) -> None:
    job = a_job(tracking)
    assert tracking.close(job, AttemptFolder(tmp_path, "j1", 1))
    assert job.run_id is not None
    assert mlflow.runs[job.run_id].status == "FAILED"


def slow_down(
    tracking: MlflowRuns, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Counter[str]:
    """Let every batch take its time; how many were sent."""
    sent: Counter[str] = Counter()
    log_batch = tracking._client.log_batch

    def slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(seconds)
        log_batch(*arguments, **options)
        sent["batches"] += 1

    monkeypatch.setattr(tracking._client, "log_batch", slowly)
    return sent


def test_much_is_sent_slice_by_slice(
    mlflow: FakeMlflow,
    tracking: MlflowRuns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, folder = a_job(tracking), AttemptFolder(tmp_path, "j1", 1)
    measure(folder, *range(2500))  # 5 batches, and one of the machine's load
    sent = slow_down(tracking, monkeypatch, 0.1)
    monkeypatch.setattr(runs_module, "SLICE_S", 0.15)
    assert job.run_id is not None
    found, calls = mlflow.runs[job.run_id], 0
    while not tracking.close(job, folder):
        calls += 1
        assert found.status == "RUNNING", "it is closed when all is there"
        assert calls < 20
    assert calls >= 2
    assert steps(found) == [*range(2500)]
    assert (sent["batches"], found.status) == (6, "FAILED")


def test_an_outage_in_the_middle_costs_no_point(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = a_job(tracking), AttemptFolder(tmp_path, "j1", 1)
    measure(folder, *range(1200))
    log_batch, times = tracking._client.log_batch, Counter[str]()

    def breaking(*arguments: Any, **options: Any) -> None:
        times["calls"] += 1
        mlflow.away = times["calls"] == 2
        log_batch(*arguments, **options)

    monkeypatch.setattr(tracking._client, "log_batch", breaking)
    with pytest.raises(TrackingUnavailableError):
        tracking.close(job, folder)
    with pytest.raises(TrackingUnavailableError):
        tracking.close(job, folder)
    mlflow.away = False
    assert tracking.close(job, folder)
    assert job.run_id is not None
    found = mlflow.runs[job.run_id]
    assert (steps(found), found.status) == ([*range(1200)], "FAILED")
    assert times["calls"] == 5, "what was sent before is not sent again"


def test_a_run_that_somebody_deleted_is_left_alone(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path
) -> None:
    job, folder = a_job(tracking), AttemptFolder(tmp_path, "j1", 1)
    measure(folder, 0, 1)
    assert job.run_id is not None
    mlflow.runs[job.run_id].deleted = True
    assert tracking.close(job, folder)
    assert mlflow.runs[job.run_id].points == set()


def test_parameters_that_a_crash_kept_back_come_later(
    mlflow: FakeMlflow, tracking: MlflowRuns
) -> None:
    job = a_job(tracking)
    assert job.run_id is not None
    whole = dict(mlflow.runs[job.run_id].params)
    mlflow.runs[job.run_id].params.clear()
    assert tracking.ensure(job) == (job.experiment_id, job.run_id)
    assert mlflow.runs[job.run_id].params == whole


# ---------------------------------------------------------------------------------- searches


def a_dead_search(tracking: MlflowRuns, storage: Path) -> tuple[Job, AttemptFolder]:
    """One trial that MLflow has, one good, one failed, one cut off, one that never ran."""
    job = replace(a_job(tracking, SEARCH, "s1"), state=State.CANCELLED, reason=Reason.CANCELLED)
    book = open_book(storage, SEARCH)
    choose(book, 0, 1, 2, 3, 4)
    for number in (0, 1, 2, 3):
        measure(trial_folder(storage, "s1", number, 1), 1, 2)
    succeed(book, 0, 0.5, 0.7)
    attempt = make_attempt(SEARCH).model_copy(update={"experiment_id": job.experiment_id})
    assert job.run_id is not None
    ChildRuns(attempt, book).ship(tracking._client, job.run_id)
    succeed(book, 1, 0.6)
    fail(book, 2)
    run(book, 3, 0.1)
    book.close()
    return job, AttemptFolder(storage, "s1", 1)


def by_trial(mlflow: FakeMlflow) -> dict[str, FakeRun]:
    runs = [each for each in mlflow.runs.values() if "caps.trial" in each.tags]
    found = {each.tags["caps.trial"]: each for each in runs}
    assert len(found) == len(runs), "a trial has two runs"
    return found


def test_the_trials_of_a_dead_search_are_sent_and_closed(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path
) -> None:
    job, folder = a_dead_search(tracking, tmp_path)
    assert by_trial(mlflow).keys() == {"0"}
    assert tracking.close(job, folder)
    found = by_trial(mlflow)
    assert [found[n].status for n in "0123"] == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert found.keys() == {"0", "1", "2", "3"}
    assert all(steps(each) == [1, 2] for each in found.values())
    assert [steps(found[n], "score") for n in "0123"] == [[2], [1], [], [1]]
    assert found["2"].tags["caps.reason"] == "diverged"
    assert found["3"].tags["caps.state"] == "CANCELLED"
    assert found["1"].params["optimizer.learning_rate"] == "0.001"
    assert job.run_id is not None
    assert mlflow.runs[job.run_id].status == "KILLED"


def test_the_trials_are_sent_slice_by_slice_too(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, folder = a_dead_search(tracking, tmp_path)
    slow_down(tracking, monkeypatch, 0.03)
    monkeypatch.setattr(runs_module, "SLICE_S", 0.05)
    calls = 0
    while not tracking.close(job, folder):
        calls += 1
        assert calls < 20
    assert calls >= 2
    found = by_trial(mlflow)
    assert [found[n].status for n in "0123"] == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    assert all(steps(each) == [1, 2] for each in found.values())


def test_a_retried_search_is_looked_at_anew(
    mlflow: FakeMlflow, tracking: MlflowRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first end was not sent whole when it went on."""
    job, folder = a_dead_search(tracking, tmp_path)
    slow_down(tracking, monkeypatch, 0.03)
    monkeypatch.setattr(runs_module, "SLICE_S", 0.02)
    assert not tracking.close(job, folder)
    book = open_book(tmp_path, SEARCH, attempt=2)
    succeed(book, 3, 0.1, 0.9)
    book.close()
    again = replace(job, attempt=2, state=State.SUCCEEDED)
    while not tracking.close(again, AttemptFolder(tmp_path, "s1", 2)):
        pass
    found = by_trial(mlflow)
    assert [found[n].status for n in "0123"] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert steps(found["3"], "score") == [2]
