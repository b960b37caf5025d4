"""The book of a search: what its driver knows stays, whatever ends the driver."""

from pathlib import Path

import pytest

from support.search_books import (
    METRIC,
    choose,
    fail,
    leave,
    make_spec,
    open_book,
    report,
    run,
    save_best,
    succeed,
    write_reports,
)
from workers.attempt import AttemptFolder, Outcome, Reason
from workers.search.book import finite
from workers.trials import TrialState, read_trials, trials_file

SPEC = make_spec()
SEEDED = make_spec(seeds=2, trials=3)


def test_a_trial_is_on_disk_before_anybody_hears_of_it(tmp_path: Path) -> None:
    book = open_book(tmp_path, SEEDED)
    choose(book, 3)
    found = read_trials(AttemptFolder(tmp_path, "s1", 1)).trials[3]
    assert (found.configuration, found.seed) == (1, 1)
    assert (found.state, found.epochs) == (TrialState.WAITING, 4)


def test_all_that_was_written_is_there_in_the_next_attempt(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1, 2, 3)
    succeed(book, 0, 0.5, 0.6, 0.55, 0.58)
    fail(book, 1, 0.1)
    run(book, 2, 0.4, 0.3)
    known = book.table()
    again = open_book(tmp_path, SPEC, attempt=2).table()
    assert again.reports == known.reports
    assert again.trials[0] == known.trials[0]
    assert (again.trials[0].score, again.trials[0].score_epoch) == (0.6, 2)
    assert again.trials[1] == known.trials[1]
    assert again.trials[2].state is again.trials[3].state is TrialState.WAITING
    assert (again.trials[2].score, again.trials[2].epoch) == (0.4, 2)
    assert again.trials[2].started_at == known.trials[2].started_at


@pytest.mark.parametrize(("through", "state"), [(0, "FAILED"), (1, "WAITING"), (2, "WAITING")])
def test_failures_are_void_up_to_the_attempt_that_is_retried(
    tmp_path: Path, through: int, state: str
) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    fail(book, 0, 0.2)
    trial = open_book(tmp_path, SPEC, attempt=2, retry_through=through).table().trials[0]
    assert trial.state == state
    # Why it failed is known until it runs again.
    assert trial.reason is Reason.DIVERGED
    assert trial.evidence
    if trial.state is TrialState.WAITING:
        assert (trial.started_at, trial.ended_at, trial.shipped) == (None, None, False)


def test_a_failure_that_did_not_run_again_stays_one(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    fail(book, 0)
    fail(book, 1)
    again = open_book(tmp_path, SPEC, attempt=2, retry_through=1)
    again.start(1)
    again.cancel_rest()
    first, second = again.table().trials.values()
    assert (first.state, first.reason) == (TrialState.FAILED, Reason.DIVERGED)
    assert (second.state, second.reason) == (TrialState.CANCELLED, Reason.CANCELLED)
    third = open_book(tmp_path, SPEC, attempt=3, retry_through=2).table().trials.values()
    assert {trial.state for trial in third} == {TrialState.WAITING}


def test_a_result_that_can_not_be_read_costs_no_more_than_itself(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    run(book, 0, 0.5)
    folder = book.folder(0)
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "result.json").write_text("{")
    again = open_book(tmp_path, SPEC, attempt=2)
    assert again.table().trials[0].state is TrialState.WAITING
    assert book.conclude(0, lost=False).state is TrialState.PRUNED


@pytest.mark.parametrize("reason", [Reason.TRIALS_FAILED, Reason.ERROR, Reason.BUDGET, None])
def test_what_was_cut_off_goes_on_when_the_search_is_retried(
    tmp_path: Path, reason: Reason | None
) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    run(book, 0, 0.5)
    if reason is not None:
        book.cut_short = (reason, "over")
    book.cancel_rest()
    assert {trial.state for trial in book.table().trials.values()} == {TrialState.CANCELLED}
    resumed = open_book(tmp_path, SPEC, attempt=2, retry_through=0)
    assert {trial.state for trial in resumed.table().trials.values()} == {TrialState.CANCELLED}
    retried = open_book(tmp_path, SPEC, attempt=3, retry_through=2)
    assert {trial.state for trial in retried.table().trials.values()} == {TrialState.WAITING}


def test_a_failure_after_the_retry_stays(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    fail(book, 0)
    second = open_book(tmp_path, SPEC, attempt=2, retry_through=1)
    fail(second, 0)
    third = open_book(tmp_path, SPEC, attempt=3, retry_through=1)
    assert third.table().trials[0].state is TrialState.FAILED
    assert third.table().trials[0].attempt == 2


# ---------------------------------------------------------------- what no driver heard of


def test_reports_that_no_driver_heard_of_are_caught_up(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    run(book, 0, 0.5)
    write_reports(tmp_path, 0, 1, report(0, 1, 0.5), report(0, 2, 0.7), report(0, 3, None))
    again = open_book(tmp_path, SPEC, attempt=2)
    trial = again.trial(0)
    assert trial is not None
    assert (trial.state, trial.epoch, trial.score) == (TrialState.WAITING, 3, 0.7)
    assert trial.score_epoch == 2
    assert [each.epoch for each in again.table().reports[0]] == [1, 2, 3]


def test_a_trial_that_succeeded_after_its_drivers_death_does_not_run_again(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    run(book, 0, 0.5)
    run(book, 1)
    best = save_best(tmp_path, 0)
    write_reports(tmp_path, 0, 1, *(report(0, epoch, 0.5 + epoch / 10) for epoch in (1, 2, 3, 4)))
    leave(book, 0, "succeeded", Reason.COMPLETED)
    leave(book, 1, "paused", Reason.PAUSED)
    again = open_book(tmp_path, SPEC, attempt=2)
    first, second = again.trial(0), again.trial(1)
    assert first is not None
    assert second is not None
    assert (first.state, first.reason, first.epoch) == (TrialState.SUCCEEDED, Reason.COMPLETED, 4)
    assert first.score == pytest.approx(0.9)
    assert first.checkpoint == best.relative_to(tmp_path).as_posix()
    assert second.state is TrialState.WAITING
    third = open_book(tmp_path, SPEC, attempt=3)
    assert third.trial(0) == first


def test_what_a_retried_trial_left_long_ago_does_not_end_it(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    fail(book, 0, 0.2)
    second = open_book(tmp_path, SPEC, attempt=2, retry_through=1)
    second.start(0)
    assert second.conclude(0, lost=True).reason is Reason.WORKER_LOST


def test_an_attempt_that_died_before_its_first_word_hides_nothing(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    succeed(book, 0, 0.5)
    AttemptFolder(tmp_path, "s1", 2).path.mkdir(parents=True)
    assert open_book(tmp_path, SPEC, attempt=3).trial(0) == book.trial(0)


def test_a_torn_line_costs_that_line(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    succeed(book, 0, 0.5)
    before = book.trial(1)
    path = trials_file(AttemptFolder(tmp_path, "s1", 1))
    book.start(1)
    path.write_bytes(path.read_bytes()[:-20])
    again = open_book(tmp_path, SPEC, attempt=2)
    assert again.trial(0) == book.trial(0)
    assert again.trial(1) == before


# ----------------------------------------------------------------------------- conclusions


@pytest.mark.parametrize(
    ("outcome", "reason", "state"),
    [
        ("succeeded", Reason.COMPLETED, TrialState.SUCCEEDED),
        ("failed", Reason.DIVERGED, TrialState.FAILED),
        ("cancelled", Reason.CANCELLED, TrialState.CANCELLED),
        ("paused", Reason.PAUSED, TrialState.WAITING),
        ("interrupted", Reason.INTERRUPTED, TrialState.WAITING),
    ],
)
@pytest.mark.parametrize("lost", [False, True])
def test_the_trials_own_word_decides(
    tmp_path: Path, outcome: Outcome, reason: Reason, state: TrialState, lost: bool
) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    run(book, 0, 0.5)
    leave(book, 0, outcome, reason, "its words")
    trial = book.conclude(0, lost=lost)
    assert (trial.state, trial.reason, trial.evidence) == (state, reason, "its words")
    assert (trial.ended_at is None) is (state is TrialState.WAITING)
    assert book.trial(0) == trial


@pytest.mark.parametrize(("epochs", "state"), [(1, "PRUNED"), (3, "PRUNED"), (4, "SUCCEEDED")])
def test_without_a_word_the_scheduler_ended_it(tmp_path: Path, epochs: int, state: str) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    best = save_best(tmp_path, 0, sha256="d1")
    run(book, 0, *[0.5] * epochs)
    trial = book.conclude(0, lost=False)
    assert trial.state == state
    assert trial.reason is (Reason.COMPLETED if state == "SUCCEEDED" else None)
    assert (trial.checkpoint, trial.checkpoint_sha256) == (
        best.relative_to(tmp_path).as_posix(),
        "d1",
    )


def test_a_trial_whose_process_died_too_often_has_failed(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1)
    run(book, 0, 0.5, 0.6)
    book.update(0, losses=1)
    run(book, 1)
    trial = book.conclude(0, lost=True)
    assert (trial.state, trial.reason) == (TrialState.FAILED, Reason.WORKER_LOST)
    assert trial.evidence == "its process died 2 times, the last time in epoch 3"
    assert book.conclude(1, lost=True).evidence == "its process died in epoch 1"


def test_the_first_conclusion_stays(tmp_path: Path) -> None:
    """Tune's callback and its searcher both conclude."""
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    succeed(book, 0, 0.5)
    first = book.trial(0)
    leave(book, 0, "failed", Reason.ERROR)
    assert book.conclude(0, lost=True) == first


def test_a_trial_cut_off_by_the_budget_says_so(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0, 1, 2)
    run(book, 0, 0.5)
    succeed(book, 2, 0.6)
    book.cut_short = (Reason.BUDGET, "time is over")
    leave(book, 0, "cancelled", Reason.CANCELLED, "stopped at step 7")
    ended = book.conclude(0, lost=False)
    assert (ended.state, ended.reason, ended.evidence) == (
        TrialState.CANCELLED,
        Reason.BUDGET,
        "time is over",
    )
    book.cancel_rest()
    waiting = book.trial(1)
    assert waiting is not None
    assert (waiting.state, waiting.reason) == (TrialState.CANCELLED, Reason.BUDGET)
    done = book.trial(2)
    assert done is not None
    assert done.state is TrialState.SUCCEEDED


# ---------------------------------------------------------------------- reports and scores


def test_a_report_is_taken_once_and_scores_only_improve(tmp_path: Path) -> None:
    book = open_book(tmp_path, SPEC)
    choose(book, 0)
    run(book, 0, 0.5, 0.4, None)
    book.report(report(0, 2, 0.99))
    trial = book.trial(0)
    assert trial is not None
    assert (trial.score, trial.score_epoch, trial.epoch) == (0.5, 1, 3)
    assert trial.metrics == {METRIC: None}
    assert [each.metrics[METRIC] for each in book.table().reports[0]] == [0.5, 0.4, None]


def test_of_a_loss_the_smallest_counts(tmp_path: Path) -> None:
    book = open_book(tmp_path, make_spec(metric="val/total_loss"))
    choose(book, 0)
    book.start(0)
    for epoch, loss in enumerate([0.5, 0.0, 0.2], start=1):
        book.report(report(0, epoch, 0.9, **{"val/total_loss": loss}))
    trial = book.trial(0)
    assert trial is not None
    assert (trial.score, trial.score_epoch) == (0.0, 2)


def test_what_is_not_finite_is_left_out_of_json() -> None:
    found = finite({"a": 1.0, "b": float("nan"), "c": float("inf"), "d": float("-inf")})
    assert found == {"a": 1.0, "b": None, "c": None, "d": None}


def test_counts_tell_of_all_that_the_search_will_run(tmp_path: Path) -> None:
    book = open_book(tmp_path, SEEDED)
    choose(book, 0, 1, 2, 3)
    succeed(book, 0, 0.5)
    fail(book, 1)
    run(book, 2, 0.5)
    counts = book.counts()
    assert (counts.total, counts.ended, counts.waiting, counts.running) == (6, 2, 3, 1)
    assert (counts.succeeded, counts.failed) == (1, 1)
    assert book.running() == {2}


def test_a_configuration_stands_when_all_its_seeds_have_ended(tmp_path: Path) -> None:
    book = open_book(tmp_path, SEEDED)
    choose(book, 0)
    succeed(book, 0, 0.5)
    assert book.standing(0) is None, "the second seed is not even chosen"
    choose(book, 1)
    run(book, 1, 0.6)
    assert book.standing(0) is None
    fail(book, 1)
    standing = book.standing(0)
    assert standing is not None
    assert standing.mean == 0.5


# ----------------------------------------------------------------------------- checkpoints


def test_only_the_best_configurations_keep_their_checkpoints(tmp_path: Path) -> None:
    spec = make_spec(seeds=2, trials=5, keep_top=2)
    book = open_book(tmp_path, spec)
    scores = [(0.5, 0.5), (0.9, 0.1), (0.8, 0.8), (0.6, 0.6)]
    choose(book, *range(10))
    files = {}
    for number, score in enumerate(score for pair in scores for score in pair):
        files[number] = save_best(tmp_path, number)
        succeed(book, number, score)
    files[8] = save_best(tmp_path, 8)
    succeed(book, 8, 0.01)  # its other seed may still lift the mean
    book.drop_checkpoints()
    kept = {number for number, path in files.items() if path.exists()}
    assert kept == {4, 5, 6, 7, 8}, "the best means, and one that may still come in"
    named = {number for number, trial in book.table().trials.items() if trial.checkpoint}
    assert named == kept


def test_checkpoints_of_failed_trials_stay_and_earlier_attempts_are_cleared(
    tmp_path: Path,
) -> None:
    spec = make_spec(keep_top=1)
    book = open_book(tmp_path, spec)
    choose(book, 0, 1, 2)
    early = [save_best(tmp_path, number) for number in (0, 1, 2)]
    second = open_book(tmp_path, spec, attempt=2)
    late = save_best(tmp_path, 0, attempt=2)
    succeed(second, 0, 0.5)
    fail(second, 1, 0.4)
    succeed(second, 2, 0.9)
    second.drop_checkpoints()
    assert not late.exists()
    assert [path.exists() for path in early] == [False, True, True]
    trial = second.trial(0)
    assert trial is not None
    assert (trial.checkpoint, trial.checkpoint_sha256) == (None, None)
