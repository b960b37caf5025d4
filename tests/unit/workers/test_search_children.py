"""The trials' runs in MLflow: each once, whole, and closed, however often sending breaks off."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.search_books import choose, fail, make_attempt, make_spec, open_book, run, succeed
from workers.child_runs import ChildRuns
from workers.search.book import SearchBook
from workers.spool import Spool
from workers.trials import TrialState, trial_folder

SPEC = make_spec(seeds=2, trials=4, labels={"team": "vision"})


@dataclass
class Run:
    """What MLflow knows of a run."""

    name: str
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, float, int, int]] = field(default_factory=set)
    status: str = "RUNNING"

    @property
    def scores(self) -> list[tuple[float, int]]:
        return [(value, step) for name, value, _, step in self.points if name == "score"]


class Page(list[Any]):
    """Some of the runs."""

    token: str | None = None


class Mlflow:
    """Stands in for MLflow's client and server; breaks off at a call, before or after its work."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.calls: Counter[str] = Counter()
        self.break_at = 0
        self.after = False

    def create_run(self, experiment: str, run_name: str, start_time: int, tags: Any) -> Any:
        assert (experiment, start_time > 0) == ("1", True)
        name = f"r{len(self.runs)}"

        def work() -> None:
            self.runs[name] = Run(run_name, dict(tags))

        self._serve("create_run", work)
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def search_runs(
        self, experiments: list[str], condition: str, max_results: int, page_token: str | None
    ) -> Page:
        self._serve("search_runs", lambda: None)
        assert (experiments, condition) == (["1"], "tags.`mlflow.parentRunId` = 'parent'")
        first = int(page_token or 0)
        names = list(self.runs)
        page = Page(
            SimpleNamespace(
                info=SimpleNamespace(run_id=name), data=SimpleNamespace(tags=self.runs[name].tags)
            )
            for name in names[first : first + 2]
        )
        page.token = str(first + 2) if first + 2 < len(names) else None
        return page

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100

        def work() -> None:
            run = self.runs[run_id]
            for each in params:
                assert run.params.get(each.key, each.value) == each.value
                run.params[each.key] = each.value
            run.points |= {(m.key, m.value, m.timestamp, m.step) for m in metrics}

        self._serve("log_params" if params else "log_metrics", work)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._serve("set_tag", lambda: self.runs[run_id].tags.update({key: value}))

    def update_run(self, run_id: str, status: str) -> None:
        self._serve("update_run", lambda: setattr(self.runs[run_id], "status", status))

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        assert end_time > 0
        self._serve("set_terminated", lambda: setattr(self.runs[run_id], "status", status))

    def _serve(self, name: str, work: Callable[[], object]) -> None:
        self.calls[name] += 1
        breaking = self.calls.total() == self.break_at
        if breaking and not self.after:
            raise ConnectionError("refused")
        work()
        if breaking:
            raise ConnectionError("the answer is lost")


def measure(storage: Path, number: int, attempt: int, *steps: int) -> None:
    """What a trial's telemetry leaves in its folder."""
    folder = trial_folder(storage, "s1", number, attempt)
    spool = Spool(folder.metrics, [earlier.metrics for earlier in folder.earlier()])
    for step in steps:
        spool.append({"train/total_loss": 1.0 / step, "val/accuracy": 0.1 * step}, step)
    spool.close()


def a_search(storage: Path) -> SearchBook:
    """Five trials in all: two good, one failed, one running, one that never ran."""
    book = open_book(storage, SPEC)
    choose(book, 0, 1, 2, 3, 4)
    for number in (0, 1, 2, 3):
        measure(storage, number, 1, 1, 2)
    succeed(book, 0, 0.5, 0.7)
    run(book, 1, 0.6)
    book.conclude(1, lost=False)
    fail(book, 2)
    run(book, 3, 0.1)
    return book


def ship_all(book: SearchBook, mlflow: Any, attempt: int = 1) -> ChildRuns:
    children = ChildRuns(make_attempt(SPEC, attempt), book)
    children.ship(mlflow, "parent")
    return children


def by_trial(mlflow: Mlflow) -> dict[str, Run]:
    found = {run.tags["caps.trial"]: run for run in mlflow.runs.values()}
    assert len(found) == len(mlflow.runs), "a trial has two runs"
    return found


def test_each_trial_that_ran_has_a_run_below_the_searchs(tmp_path: Path) -> None:
    mlflow = Mlflow()
    book = a_search(tmp_path)
    ship_all(book, mlflow)
    runs = by_trial(mlflow)
    assert set(runs) == {"0", "1", "2", "3"}
    first = runs["0"]
    assert first.name == "search-0000"
    assert first.tags["mlflow.parentRunId"] == "parent"
    assert first.tags["caps.search"] == "s1"
    assert (runs["3"].tags["caps.configuration"], first.tags["team"]) == ("1", "vision")
    assert "seed 1" in runs["1"].tags["mlflow.note.content"]
    assert first.params["optimizer.learning_rate"] == "0.001"
    assert (first.params["seed"], runs["1"].params["seed"]) == ("7", "8")
    assert {(name, step) for name, _, _, step in first.points} == {
        ("train/total_loss", 1),
        ("train/total_loss", 2),
        ("val/accuracy", 1),
        ("val/accuracy", 2),
        ("score", 2),
    }
    assert first.scores == [(0.7, 2)]


def test_runs_are_closed_as_their_trials_ended(tmp_path: Path) -> None:
    mlflow = Mlflow()
    book = a_search(tmp_path)
    ship_all(book, mlflow)
    runs = by_trial(mlflow)
    assert [runs[n].status for n in "0123"] == ["FINISHED", "FINISHED", "FAILED", "RUNNING"]
    assert [runs[n].tags.get("caps.state") for n in "0123"] == [
        "SUCCEEDED",
        "PRUNED",
        "FAILED",
        None,
    ]
    assert runs["2"].tags["caps.reason"] == "diverged"
    assert runs["2"].tags["caps.evidence"] == "loss of trial 2 is nan"
    assert runs["3"].scores == []
    shipped = {n: trial.shipped for n, trial in book.table().trials.items()}
    assert shipped == {0: True, 1: True, 2: True, 3: False, 4: False}
    book.cancel_rest()
    ship_all(book, mlflow)
    assert by_trial(mlflow)["3"].status == "KILLED"
    assert len(mlflow.runs) == 4, "what never ran has no run"


def test_shipping_again_sends_only_what_is_new(tmp_path: Path) -> None:
    mlflow = Mlflow()
    book = a_search(tmp_path)
    children = ship_all(book, mlflow)
    before = mlflow.calls.copy()
    children.ship(mlflow, "parent")  # type: ignore[arg-type]
    assert mlflow.calls == before
    measure(tmp_path, 3, 1, 3)
    children.ship(mlflow, "parent")  # type: ignore[arg-type]
    assert mlflow.calls - before == Counter({"log_metrics": 1})
    assert ("val/accuracy", 3) in {(n, s) for n, _, _, s in by_trial(mlflow)["3"].points}


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("same", [True, False], ids=["same attempt", "next attempt"])
def test_wherever_sending_breaks_off_all_is_there_once_in_the_end(
    tmp_path: Path, after: bool, same: bool
) -> None:
    whole = Mlflow()
    ship_all(a_search(tmp_path / "whole"), whole)
    count = whole.calls.total()
    assert count > 20
    for break_at in range(1, count + 1):
        storage = tmp_path / str(break_at)
        mlflow = Mlflow()
        mlflow.break_at, mlflow.after = break_at, after
        book = a_search(storage)
        children = ChildRuns(make_attempt(SPEC), book)
        with pytest.raises(ConnectionError):
            children.ship(mlflow, "parent")  # type: ignore[arg-type]
        if same:
            children.ship(mlflow, "parent")  # type: ignore[arg-type]
        else:
            book = open_book(storage, SPEC, attempt=2)
            book.start(3)
            ship_all(book, mlflow, attempt=2)
        runs, expected = by_trial(mlflow), by_trial(whole)
        assert {n: each.status for n, each in runs.items()} == {
            n: each.status for n, each in expected.items()
        }
        for number, run_ in runs.items():
            assert run_.params == expected[number].params
            assert tags_of(run_) == tags_of(expected[number])
            steps = Counter((name, step) for name, _, _, step in run_.points)
            assert set(steps.values()) == {1}
            assert steps.keys() == {(n, s) for n, _, _, s in expected[number].points}


def tags_of(run: Run) -> dict[str, str]:
    return {name: value for name, value in run.tags.items() if name != "mlflow.note.content"}


def test_a_resumed_search_goes_on_with_the_runs_of_the_earlier_attempt(tmp_path: Path) -> None:
    mlflow = Mlflow()
    ship_all(a_search(tmp_path), mlflow)
    book = open_book(tmp_path, SPEC, attempt=2, retry_through=1)
    before = mlflow.calls.copy()
    ship_all(book, mlflow, attempt=2)
    assert mlflow.calls == before, "nothing has run yet"
    assert by_trial(mlflow)["2"].status == "FAILED"

    run(book, 2, 0.4)
    ship_all(book, mlflow, attempt=2)
    assert by_trial(mlflow)["2"].status == "RUNNING", "it is retried"
    measure(tmp_path, 2, 2, 2, 3)
    book.conclude(2, lost=False)
    ship_all(book, mlflow, attempt=2)
    again = by_trial(mlflow)["2"]
    assert again.status == "FINISHED"
    assert again.tags["caps.state"] == TrialState.PRUNED
    assert (again.tags["caps.reason"], again.tags["caps.evidence"]) == ("", "")
    assert {s for n, _, _, s in again.points if n == "val/accuracy"} == {1, 2, 3}
    assert Counter(n for n, _, _, _ in again.points)["val/accuracy"] == 3
    assert len(mlflow.runs) == 4


def test_a_run_that_no_book_names_is_found(tmp_path: Path) -> None:
    """The driver died between making the runs and noting them."""
    mlflow = Mlflow()
    book = a_search(tmp_path)
    for number in (0, 1, 2, 3):
        tags = {"mlflow.parentRunId": "parent", "caps.trial": str(number)}
        mlflow.runs[f"old{number}"] = Run("old", tags)
    mlflow.runs["other"] = Run("no trial", {"mlflow.parentRunId": "parent"})
    ship_all(book, mlflow)
    assert len(mlflow.runs) == 5
    assert [book.table().trials[n].run_id for n in range(4)] == ["old0", "old1", "old2", "old3"]


@pytest.mark.slow
def test_mlflow_itself_takes_all_of_it(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))
    parent = client.create_run(experiment).info.run_id
    attempt = make_attempt(SPEC).model_copy(update={"experiment_id": experiment})
    book = a_search(tmp_path)
    for _ in range(2):
        ChildRuns(attempt, book).ship(client, parent)
        for number in range(4):  # as if the attempt had not noted it
            book.update(number, shipped=False, run_id=None)
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    found = {each.data.tags["caps.trial"]: each for each in runs}
    assert len(runs) == len(found) == 4
    assert found["0"].info.status == "FINISHED"
    assert found["2"].data.tags["caps.reason"] == "diverged"
    assert found["0"].data.params["optimizer.learning_rate"] == "0.001"
    for name in ("val/accuracy", "train/total_loss"):
        history = client.get_metric_history(found["0"].info.run_id, name)
        assert [point.step for point in history] == [1, 2]
    assert len(client.get_metric_history(found["0"].info.run_id, "score")) == 1
