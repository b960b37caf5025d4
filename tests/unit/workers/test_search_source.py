"""Where Tune gets its trials: as many at once as allowed, and each algorithm hears the truth."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from support.search_books import RATE, choose, fail, leave, make_spec, open_book, run, succeed
from workers.attempt import Reason
from workers.search.algorithms import Algorithm, RandomSearch
from workers.search.book import SearchBook
from workers.search.source import TrialSource
from workers.search_specs import SearchSpec
from workers.trials import Standing, TrialState


class Scribe(Algorithm):
    """Writes down what it is asked and told."""

    def __init__(self, spec: SearchSpec) -> None:
        super().__init__(spec)
        self.asked: list[int] = []
        self.heard: list[tuple[int, dict[str, Any]]] = []
        self.told: list[tuple[int, float | None]] = []

    def ask(self, configuration: int) -> dict[str, Any]:
        self.asked.append(configuration)
        return {RATE: 0.001 * (configuration + 1)}

    def known(self, configuration: int, values: dict[str, Any]) -> None:
        self.heard.append((configuration, values))

    def tell(self, standing: Standing) -> None:
        self.told.append((standing.configuration, standing.mean))


class Stage:
    """A source with all that it needs."""

    def __init__(self, book: SearchBook) -> None:
        self.book = book
        self.closed = False
        self.algorithm = Scribe(book.spec)
        self.source = TrialSource(book, self.algorithm, "s1", lambda: self.closed)

    def suggest(self, trial_id: str) -> Any:
        order = self.source.suggest(trial_id)
        return json.loads(order["order"]) if isinstance(order, dict) else order

    def end(self, trial_id: str, number: int, score: float) -> None:
        succeed(self.book, number, score)
        self.source.on_trial_complete(trial_id, {})


def test_no_more_trials_run_at_once_than_may(tmp_path: Path) -> None:
    stage = Stage(open_book(tmp_path, make_spec(concurrency=2, trials=3)))
    assert [stage.suggest("a")["number"], stage.suggest("b")["number"]] == [0, 1]
    assert stage.suggest("c") is None
    stage.end("a", 0, 0.5)
    stage.source.on_trial_complete("a", {})  # Tune may say it twice
    assert stage.suggest("c")["number"] == 2
    assert stage.suggest("d") == Searcher.FINISHED
    assert stage.algorithm.asked == [0, 1, 2]


def test_a_trial_is_in_the_book_before_tune_hears_of_it(tmp_path: Path) -> None:
    stage = Stage(open_book(tmp_path, make_spec()))
    order = stage.suggest("a")
    assert order == {
        "search": "s1",
        "attempt": 1,
        "number": 0,
        "seed": 0,
        "values": {RATE: 0.001},
    }
    trial = stage.book.trial(0)
    assert trial is not None
    assert (trial.values, trial.epochs, trial.state) == (order["values"], 4, TrialState.WAITING)


def test_seeds_of_a_configuration_share_its_values(tmp_path: Path) -> None:
    stage = Stage(open_book(tmp_path, make_spec(seeds=3, trials=2, concurrency=10)))
    orders = [stage.suggest(f"t{number}") for number in range(6)]
    assert [order["seed"] for order in orders] == [0, 1, 2, 0, 1, 2]
    assert [order["values"][RATE] for order in orders] == [0.001] * 3 + [0.002] * 3
    assert stage.algorithm.asked == [0, 1]
    assert stage.suggest("more") == Searcher.FINISHED


def test_the_epochs_that_are_searched_over_are_the_trials_own(tmp_path: Path) -> None:
    spec = make_spec(
        space={"epochs": {"type": "grid", "values": [3, 6]}},
        algorithm={"type": "grid"},
        trials=None,
    )
    book = open_book(tmp_path, spec)
    source = TrialSource(book, RandomSearch(spec), "s1", lambda: False)
    source.suggest("a")
    source.suggest("b")
    assert [trial.epochs for trial in book.table().trials.values()] == [3, 6]


def test_a_closed_search_starts_nothing(tmp_path: Path) -> None:
    stage = Stage(open_book(tmp_path, make_spec()))
    stage.closed = True
    assert stage.suggest("a") == Searcher.FINISHED
    assert stage.book.table().trials == {}


def test_the_algorithm_hears_of_a_configuration_once_when_all_its_seeds_have_ended(
    tmp_path: Path,
) -> None:
    stage = Stage(open_book(tmp_path, make_spec(seeds=2, concurrency=4)))
    for number, name in enumerate("abcd"):
        assert stage.suggest(name)["number"] == number
    stage.end("b", 1, 0.6)
    assert stage.algorithm.told == []
    stage.end("a", 0, 0.4)
    assert stage.algorithm.told == [(0, 0.5)]
    stage.end("c", 2, 0.1)
    run(stage.book, 3)
    stage.source.on_trial_complete("d", error=True)
    assert stage.algorithm.told == [(0, 0.5), (1, 0.1)]
    lost = stage.book.trial(3)
    assert lost is not None
    assert lost.reason is Reason.WORKER_LOST


def test_the_algorithm_does_not_hear_of_what_the_search_itself_cut_off(tmp_path: Path) -> None:
    stage = Stage(open_book(tmp_path, make_spec()))
    for number, name in enumerate("ab"):
        stage.suggest(name)
        run(stage.book, number, 0.5)
    leave(stage.book, 0, "cancelled", Reason.CANCELLED)
    stage.source.on_trial_complete("a", {})
    leave(stage.book, 1, "paused", Reason.PAUSED)
    stage.source.on_trial_complete("b", {})
    assert stage.algorithm.told == []


# ---------------------------------------------------------------------------- after a resume


def first_attempt(storage: Path, spec: SearchSpec) -> None:
    """Configuration 0 ended well, 1 in part, 2 failed, 3 has one seed of two chosen."""
    book = open_book(storage, spec)
    choose(book, *range(7))
    for number in (0, 1, 2):
        succeed(book, number, 0.1 * number)
    run(book, 3, 0.9)
    fail(book, 4)
    fail(book, 5)
    book.close()


@pytest.fixture
def resumed(tmp_path: Path) -> Stage:
    spec = make_spec(seeds=2, trials=5, concurrency=10)
    first_attempt(tmp_path, spec)
    return Stage(open_book(tmp_path, spec, attempt=2))


def test_those_that_wait_come_first_then_new_ones_are_numbered_on(resumed: Stage) -> None:
    assert resumed.source.remaining == 5
    orders = [resumed.suggest(name) for name in "abcde"]
    assert [order["number"] for order in orders] == [3, 6, 7, 8, 9]
    assert {order["attempt"] for order in orders} == {2}
    assert orders[1]["values"] == orders[2]["values"] == {RATE: 0.004}
    assert resumed.algorithm.asked == [4], "the other values stand in the book"
    assert resumed.suggest("f") == Searcher.FINISHED


def test_the_algorithm_knows_all_earlier_configurations_in_order(resumed: Stage) -> None:
    assert [number for number, _ in resumed.algorithm.heard] == [0, 1, 2, 3]
    assert resumed.algorithm.heard[1][1] == {RATE: 0.002}
    assert resumed.algorithm.told == [(0, pytest.approx(0.05)), (2, None)]
    resumed.suggest("a")
    resumed.end("a", 3, 0.9)
    assert [number for number, _ in resumed.algorithm.told] == [0, 2, 1]


def test_a_search_that_has_nothing_left_ends_at_once(tmp_path: Path) -> None:
    spec = make_spec(trials=2)
    book = open_book(tmp_path, spec)
    choose(book, 0, 1)
    succeed(book, 0, 0.5)
    fail(book, 1)
    stage = Stage(open_book(tmp_path, spec, attempt=2))
    assert stage.source.remaining == 0
    assert stage.suggest("a") == Searcher.FINISHED
