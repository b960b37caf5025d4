"""What a search's driver decides: when it ends, and what became of it. Without Ray or MLflow."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.search_books import (
    choose,
    fail,
    make_attempt,
    make_spec,
    open_book,
    report,
    run,
    save_best,
    succeed,
)
from workers.attempt import AttemptFolder, Progress, Reason, Result
from workers.search import driver as module
from workers.search.book import SearchBook
from workers.search.driver import SearchCourse, _bundle, search
from workers.search.watcher import Watcher
from workers.search_specs import SearchSpec
from workers.specs import ResourcesConfig
from workers.stop import StopCause
from workers.trials import TrialState, read_trials

STRICT = make_spec(trials=3, budget={"max_failures": 1, "max_runtime_s": 60})


class Stop:
    """Says what a test has it say."""

    def __init__(self, cause: StopCause | None = None) -> None:
        self.said = cause

    def cause(self) -> StopCause | None:
        return self.said


class Stage:
    """A search's first or later attempt, as far as it decides anything."""

    def __init__(self, storage: Path, spec: SearchSpec = STRICT, attempt: int = 1) -> None:
        self.storage = storage
        self.folder = AttemptFolder(storage, "s1", attempt)
        self.book = open_book(storage, spec, attempt)
        self.attempt = make_attempt(spec, attempt)
        self.folder.write_attempt(self.attempt)
        self.stop = Stop()
        self.course = self.begin()

    def begin(self) -> SearchCourse:
        return SearchCourse(self.folder, self.attempt, self.book, self.stop)  # type: ignore[arg-type]

    def asked(self) -> set[int]:
        """Trials that were asked to leave."""
        trials = self.book.table().trials
        return {number for number in trials if self.book.folder(number).stop_requested()}

    def states(self) -> list[TrialState]:
        return [trial.state for _, trial in sorted(self.book.table().trials.items())]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# --------------------------------------------------------------------------------- verdicts


def test_a_search_whose_trials_went_well_has_succeeded(stage: Stage) -> None:
    choose(stage.book, 0, 1, 2)
    for number, score in enumerate([0.5, 0.9, 0.6]):
        save_best(stage.storage, number, sha256=f"d{number}")
        succeed(stage.book, number, score / 2, score)
    result = stage.course.verdict()
    assert (result.outcome, result.reason) == ("succeeded", Reason.COMPLETED)
    assert result.evidence == ("best val/accuracy 0.9000 by configuration 1; 3 of 3 trials ended")
    assert result.metrics == {"score": 0.9, "trials": 3, "trials_failed": 0}
    best = result.checkpoints["best"]
    assert (best.sha256, best.epoch) == ("d1", 2)
    assert (stage.storage / best.path).exists()


def test_the_deviation_over_seeds_is_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_spec(trials=1, seeds=2))
    choose(stage.book, 0, 1)
    succeed(stage.book, 0, 0.5)
    succeed(stage.book, 1, 0.7)
    assert "best val/accuracy 0.6000 ± 0.1414 by" in stage.course.verdict().evidence


def test_failures_are_tolerated_up_to_the_budget(stage: Stage) -> None:
    choose(stage.book, 0, 1, 2)
    fail(stage.book, 0)
    succeed(stage.book, 1, 0.5)
    run(stage.book, 2, 0.4)
    stage.book.conclude(2, lost=False)
    result = stage.course.verdict()
    assert result.outcome == "succeeded"
    assert result.metrics["trials_failed"] == 1


def test_more_failures_than_tolerated_fail_the_search(stage: Stage) -> None:
    choose(stage.book, 0, 1, 2)
    succeed(stage.book, 0, 0.9)
    fail(stage.book, 1)
    fail(stage.book, 2)
    result = stage.course.verdict()
    assert (result.outcome, result.reason) == ("failed", Reason.TRIALS_FAILED)
    assert result.evidence == (
        "2 trials failed, 1 are tolerated; 3 of 3 trials ended, 2 failed; "
        "trial 2: loss of trial 2 is nan"
    )


def test_a_search_without_any_score_has_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_spec(trials=1))
    choose(stage.book, 0)
    fail(stage.book, 0)
    result = stage.course.verdict()
    assert (result.outcome, result.reason) == ("failed", Reason.TRIALS_FAILED)


@pytest.mark.parametrize(
    ("cause", "outcome", "reason"),
    [
        ("pause", "paused", Reason.PAUSED),
        ("cancel", "cancelled", Reason.CANCELLED),
        ("signal", "interrupted", Reason.INTERRUPTED),
        ("superseded", "interrupted", Reason.INTERRUPTED),
    ],
)
def test_a_search_that_was_asked_to_leave_says_so(
    stage: Stage, cause: StopCause, outcome: str, reason: Reason
) -> None:
    choose(stage.book, 0, 1)
    succeed(stage.book, 0, 0.9)
    stage.stop.said = cause
    result = stage.course.verdict()
    assert (result.outcome, result.reason) == (outcome, reason)
    assert result.evidence.startswith("1 of 3 trials ended")
    assert ("1 cancelled" in result.evidence) is (cause == "cancel")
    waiting = TrialState.CANCELLED if cause == "cancel" else TrialState.WAITING
    assert stage.states() == [TrialState.SUCCEEDED, waiting]


def test_a_budget_that_ran_out_leaves_what_was_found(stage: Stage) -> None:
    choose(stage.book, 0, 1)
    succeed(stage.book, 0, 0.9)
    stage.book.cut_short = (Reason.BUDGET, "budget.max_runtime_s = 60 is over")
    result = stage.course.verdict()
    assert result.outcome == "succeeded"
    assert result.evidence.endswith(
        "1 of 3 trials ended, 1 cancelled; budget.max_runtime_s = 60 is over"
    )
    rest = stage.book.trial(1)
    assert rest is not None
    assert (rest.state, rest.reason) == (TrialState.CANCELLED, Reason.BUDGET)


def test_a_budget_too_short_for_any_score_is_the_reason(stage: Stage) -> None:
    choose(stage.book, 0)
    stage.book.start(0)
    stage.book.cut_short = (Reason.BUDGET, "budget.max_runtime_s = 60 is over")
    result = stage.course.verdict()
    assert (result.outcome, result.reason) == ("failed", Reason.BUDGET)
    assert result.evidence.startswith("budget.max_runtime_s = 60 is over, and no trial has")


def test_a_best_trial_without_a_checkpoint_is_still_the_best(stage: Stage) -> None:
    choose(stage.book, 0)
    succeed(stage.book, 0, 0.9)
    result = stage.course.verdict()
    assert (result.outcome, result.checkpoints) == ("succeeded", {})


# ------------------------------------------------------------------------------ when it ends


def test_a_search_is_open_while_nothing_speaks_against_it(stage: Stage) -> None:
    choose(stage.book, 0, 1)
    run(stage.book, 0, 0.5)
    fail(stage.book, 1)
    assert not stage.course._closed()
    assert stage.asked() == set()


def test_one_failure_too_many_stops_all_that_run(stage: Stage) -> None:
    choose(stage.book, 0, 1, 2)
    run(stage.book, 0, 0.5)
    fail(stage.book, 1)
    fail(stage.book, 2)
    assert stage.course._closed()
    assert stage.book.cut_short is not None
    assert stage.book.cut_short[0] is Reason.TRIALS_FAILED
    assert stage.asked() == {0}


def test_a_trial_that_starts_only_after_the_cut_is_stopped_too(stage: Stage) -> None:
    """Tune had it waiting for resources."""
    choose(stage.book, 0, 1)
    run(stage.book, 0, 0.5)
    stage.book.cut_short = (Reason.BUDGET, "over")
    assert stage.course._closed()
    assert stage.asked() == {0}
    stage.book.start(1)
    assert stage.course._closed()
    assert stage.asked() == {0, 1}


def test_time_is_over_for_all_attempts_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    first = AttemptFolder(tmp_path, "s1", 1)
    first.write_attempt(make_attempt(STRICT))
    first.write_progress(Progress())
    began = time.time() - 500
    os.utime(first.path / "attempt.json", (began, began))
    os.utime(first.path / "progress.json", (began + 45, began + 45))
    AttemptFolder(tmp_path, "s1", 2).path.mkdir()  # an attempt that never spoke took no time
    stage = Stage(tmp_path, attempt=3)
    now[0] += 14
    assert not stage.course._closed()
    now[0] += 2
    assert stage.course._closed()
    assert stage.book.cut_short == (Reason.BUDGET, "budget.max_runtime_s = 60 is over")


def test_without_a_limit_time_is_never_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stage = Stage(tmp_path, make_spec())
    now[0] += 1e9
    assert not stage.course._closed()


@pytest.mark.parametrize("cause", ["pause", "cancel", "superseded", "signal"])
def test_trials_know_no_signals_so_they_are_told(stage: Stage, cause: StopCause) -> None:
    choose(stage.book, 0)
    run(stage.book, 0, 0.5)
    stage.stop.said = cause
    assert stage.course._closed()
    assert stage.folder.leave_requested() is (cause == "signal")
    assert stage.asked() == set(), "they see the rest for themselves"


def test_a_trial_reserves_its_workers_share_or_its_drivers() -> None:
    alone = ResourcesConfig(cpus_per_worker=3, gpus_per_worker=0.25, accelerator_type="T4")
    assert _bundle(alone) == {"CPU": 3, "GPU": 0.25, "accelerator_type:T4": 0.001}
    assert _bundle(ResourcesConfig(workers=2)) == {"CPU": 0, "driver_slot": 1}


# ------------------------------------------------------------------- what Tune tells of a trial


def test_all_that_tune_tells_is_written_down(stage: Stage) -> None:
    looks: list[int] = []
    watcher = Watcher(stage.book, lambda: looks.append(1))
    trial: Any = SimpleNamespace(config={"number": 0})
    choose(stage.book, 0)
    known: dict[str, Any] = {"iteration": 1, "trials": [trial], "trial": trial}
    watcher.on_step_begin(1, [trial])
    watcher.on_trial_start(**known)
    watcher.on_trial_result(**known, result={"report": report(0, 1, 0.5).model_dump_json()})
    watcher.on_trial_result(**known, result={"done": True})
    watcher.on_trial_recover(**known)
    watcher.on_trial_start(**known)
    found = stage.book.trial(0)
    assert found is not None
    assert (found.state, found.score, found.losses) == (TrialState.RUNNING, 0.5, 1)
    watcher.on_trial_error(**known)
    found = stage.book.trial(0)
    assert found is not None
    assert (found.state, found.reason) == (TrialState.FAILED, Reason.WORKER_LOST)
    assert found.evidence == "its process died 2 times, the last time in epoch 2"
    assert looks == [1]


def test_the_end_of_a_trial_clears_up_after_the_others(tmp_path: Path) -> None:
    stage = Stage(tmp_path, make_spec(keep_top=1))
    choose(stage.book, 0, 1)
    first, second = (save_best(tmp_path, number) for number in (0, 1))
    succeed(stage.book, 0, 0.5)
    run(stage.book, 1, 0.6)
    trial: Any = SimpleNamespace(config={"number": 1})
    Watcher(stage.book, lambda: None).on_trial_complete(1, [trial], trial)
    assert stage.states()[1] is TrialState.PRUNED
    assert (first.exists(), second.exists()) == (False, True)


# ---------------------------------------------------------------------------- the whole course


class Silent:
    """In place of the connection to MLflow."""

    def __init__(self, uri: str, run_id: str, spool: object, *, apart: bool) -> None:
        assert not apart, "calls of a search can not be handed to another process"
        self.submitted: list[str] = []
        self.patience: float | None = None
        SILENT.append(self)

    def start(self) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def submit(self, what: str, call: object) -> None:
        self.submitted.append(what)

    def finish(self, patience_s: float, hurry: object) -> str:
        self.patience = patience_s
        return "complete"


SILENT: list[Silent] = []
STATUSES: list[str] = []


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, no MLflow; what the run's end is said to be stands in STATUSES."""

    @contextmanager
    def connected(stop: object) -> Iterator[None]:
        yield

    def end(status: str) -> Callable[..., None]:
        STATUSES.append(status)
        return lambda *given: None

    SILENT.clear()
    STATUSES.clear()
    monkeypatch.setattr(module, "Tracker", Silent)
    monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(module.uploads, "end", end)
    monkeypatch.setattr(module, "TUNE_ENVIRONMENT", {})
    monkeypatch.setattr(module, "present", lambda *given: SILENT[0].submit("best", None))


def play(
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[SearchBook, Stop], Any],
    attempt: int = 1,
) -> Result:
    folder, stop = AttemptFolder(storage, "s1", attempt), Stop()
    orders = make_attempt(STRICT, attempt)
    folder.write_attempt(orders)
    monkeypatch.setattr(SearchCourse, "run", lambda self: act(self._book, stop))
    return search(folder, orders, stop)  # type: ignore[arg-type]


def all_well(book: SearchBook, stop: Stop) -> None:
    choose(book, 0)
    succeed(book, 0, 0.5)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("act", "outcome", "statuses", "shown"),
    [
        (all_well, "succeeded", ["FINISHED"], True),
        (lambda book, stop: None, "failed", ["FAILED"], True),
        (lambda book, stop: setattr(stop, "said", "cancel"), "cancelled", ["KILLED"], True),
        (lambda book, stop: setattr(stop, "said", "pause"), "paused", [], False),
        (lambda book, stop: setattr(stop, "said", "signal"), "interrupted", [], False),
    ],
    ids=["well", "no score", "cancelled", "paused", "signal"],
)
def test_the_searchs_run_ends_as_the_search_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[SearchBook, Stop], Any],
    outcome: str,
    statuses: list[str],
    shown: bool,
) -> None:
    result = play(tmp_path, monkeypatch, act)
    assert (result.outcome, result.tracking) == (outcome, "complete")
    assert statuses == STATUSES
    (tracker,) = SILENT
    assert ("best" in tracker.submitted) is shown
    assert "the trials" in tracker.submitted
    expected = module.PATIENCE_DONE_S if outcome == "succeeded" else module.PATIENCE_STOPPED_S
    assert tracker.patience == expected
    progress = AttemptFolder(tmp_path, "s1", 1).read_progress()
    assert progress is not None
    assert progress.trials is not None
    assert progress.phase == ("finishing" if shown else "searching")
    if outcome == "succeeded":
        assert (progress.trials.succeeded, progress.best_score) == (1, 0.5)


@pytest.mark.usefixtures("quiet")
def test_the_run_of_a_later_attempt_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def superseded(book: SearchBook, stop: Stop) -> None:
        AttemptFolder(tmp_path, "s1", 2).path.mkdir()

    play(tmp_path, monkeypatch, superseded)
    assert STATUSES == []


@pytest.mark.usefixtures("quiet")
def test_an_error_of_the_search_itself_ends_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(book: SearchBook, stop: Stop) -> None:
        choose(book, 0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(tmp_path, monkeypatch, broken)
    assert STATUSES == ["FAILED"]
    trial = read_trials(AttemptFolder(tmp_path, "s1", 1)).trials[0]
    assert (trial.state, trial.reason) == (TrialState.CANCELLED, Reason.ERROR)
    assert trial.evidence == "the search itself failed: ZeroDivisionError"
    again = open_book(tmp_path, STRICT, attempt=2, retry_through=1).trial(0)
    assert again is not None
    assert again.state is TrialState.WAITING
