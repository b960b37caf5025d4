"""Several workers of one training, without Ray: what is said, and what a trial passes on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.search_books import make_spec, report, write_reports
from workers.attempt import AttemptFolder, Outcome, Reason, Result
from workers.search import group
from workers.search.trainable import EPOCH, TrialOrder, WorkersLostError
from workers.stop import StopSignal
from workers.together import Relay, _failure, _first_line
from workers.trials import trial_folder

TRAIN = RuntimeError("Worker group is not healthy\n[Rank 1]: it died")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[AttemptFolder]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    found = AttemptFolder(tmp_path, "j1", 1)
    found.path.mkdir(parents=True)
    yield found
    for number, handler in handlers.items():
        signal.signal(number, handler)


def failed(rank: int, reason: Reason, words: str = "gone") -> Result:
    return Result(outcome="failed", reason=reason, evidence=f"worker {rank}: {words}")


@pytest.mark.parametrize("own", [Reason.DIVERGED, Reason.ERROR, Reason.OUT_OF_MEMORY])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_workers_own_error_tells_more_than_that_others_lost_it(
    folder: AttemptFolder, own: Reason, rank: int
) -> None:
    for each in range(3):
        folder.write_outcome(each, failed(each, own if each == rank else Reason.WORKER_LOST))
    assert _failure(folder, 3, TRAIN) == failed(rank, own)


def test_a_known_reason_tells_more_than_an_error(folder: AttemptFolder) -> None:
    folder.write_outcome(0, failed(0, Reason.ERROR))
    folder.write_outcome(1, failed(1, Reason.DIVERGED))
    folder.write_outcome(2, failed(2, Reason.WORKER_LOST))
    assert _failure(folder, 3, TRAIN).reason is Reason.DIVERGED


def test_of_errors_alike_the_first_workers_counts(folder: AttemptFolder) -> None:
    for rank in (1, 2):
        folder.write_outcome(rank, failed(rank, Reason.ERROR))
    assert _failure(folder, 3, TRAIN).evidence == failed(1, Reason.ERROR).evidence


def test_what_mlflow_lacks_is_the_first_workers_word(folder: AttemptFolder) -> None:
    folder.write_outcome(1, failed(1, Reason.DIVERGED))
    assert _failure(folder, 2, TRAIN).tracking == (
        "incomplete: the first worker left no word of it"
    )
    lacking = failed(0, Reason.WORKER_LOST).model_copy(update={"tracking": "incomplete: 1 upload"})
    folder.write_outcome(0, lacking)
    found = _failure(folder, 2, TRAIN)
    assert (found.reason, found.tracking) == (Reason.DIVERGED, "incomplete: 1 upload")


def test_the_one_that_left_no_word_has_died(folder: AttemptFolder) -> None:
    for rank in (0, 2):
        folder.write_outcome(rank, failed(rank, Reason.WORKER_LOST, "connection closed"))
    found = _failure(folder, 3, TRAIN)
    assert (found.outcome, found.reason) == ("interrupted", Reason.WORKER_LOST)
    assert found.evidence == "worker 1 of 3 died; worker 0: connection closed"


def test_where_nobody_left_a_word_train_is_heard(folder: AttemptFolder) -> None:
    found = _failure(folder, 2, TRAIN)
    assert (found.outcome, found.reason) == ("interrupted", Reason.WORKER_LOST)
    assert found.evidence == ("a worker of 2 died; Worker group is not healthy [Rank 1]: it died")


def test_a_worker_that_ended_well_is_not_the_one_that_died(folder: AttemptFolder) -> None:
    folder.write_outcome(0, Result(outcome="succeeded", reason=Reason.COMPLETED))
    assert _failure(folder, 2, TRAIN).evidence.startswith("worker 1 of 2 died; ")


def test_evidence_is_not_longer_than_a_reader_bears(folder: AttemptFolder) -> None:
    assert len(_failure(folder, 2, RuntimeError("x" * 5000)).evidence) == 1000
    assert _first_line(ValueError("first\nsecond")) == "first"
    assert _first_line(ValueError()) == "ValueError"
    assert len(_first_line(ValueError("x" * 5000))) == 500


def test_a_signal_reaches_the_workers_by_their_folder(folder: AttemptFolder) -> None:
    stop = StopSignal(folder)
    with Relay(folder, stop):
        assert not folder.leave_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 5
        while not folder.leave_requested():
            assert time.monotonic() < until, "not in time"
            time.sleep(0.01)


def test_what_workers_see_for_themselves_is_not_relayed(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.together.RELAY_S", 0.01)
    stop = StopSignal(folder)
    folder.request_stop("pause")
    with Relay(folder, stop):
        time.sleep(0.1)
    assert not folder.leave_requested()


# ------------------------------------------------------------------- a trial of several workers


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptFolder:
    monkeypatch.setattr(group, "LOOK_EVERY_S", 0.01)
    return trial_folder(tmp_path, "s1", 0, 2)


SPEC = make_spec(base={"resources": {"workers": 2}}).variant({})
ORDER = TrialOrder(search="s1", attempt=2, number=0, seed=0, values={})
DONE = Result(outcome="succeeded", reason=Reason.COMPLETED)


def workers_that(act: Callable[[AttemptFolder], Result | None]) -> Callable[..., Result]:
    """In place of Ray Train."""

    def run_workers(work: Any, orders: Any, folder: AttemptFolder, need: Any) -> Result:
        found = act(folder)
        if found is None:
            raise RuntimeError("no room")
        return found

    return run_workers


def test_a_trial_passes_on_what_its_first_worker_writes_down(
    trial: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def train(folder: AttemptFolder) -> Result:
        for epoch in (2, 3, 4):
            write_reports(folder.storage, 0, 2, report(0, epoch, 0.1 * epoch))
            until = time.monotonic() + 5
            while epoch < SPEC.epochs and epoch not in told:
                assert time.monotonic() < until, "not in time"
                time.sleep(0.005)
        return DONE

    write_reports(trial.storage, 0, 1, report(0, 1, 0.1))  # of the search's first attempt
    monkeypatch.setattr(group, "run_workers", workers_that(train))
    result, last = group.train_group(ORDER, trial, SPEC, lambda each: told.append(each[EPOCH]))
    assert told == [1, 2, 3]
    assert (result, last) == (DONE, report(0, 4, 0.4))


def test_a_lost_worker_has_tune_start_the_trial_again(
    trial: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Result(outcome="interrupted", reason=Reason.WORKER_LOST, evidence="worker 1 of 2 died")
    monkeypatch.setattr(group, "run_workers", workers_that(lambda folder: lost))
    with pytest.raises(WorkersLostError, match="worker 1 of 2 died"):
        group.train_group(ORDER, trial, SPEC, lambda each: None)


@pytest.mark.parametrize("outcome", ["paused", "failed", "cancelled"])
def test_only_a_good_end_is_told_as_the_end(
    trial: AttemptFolder, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    write_reports(trial.storage, 0, 2, report(0, 1, 0.1))
    result = Result(outcome=outcome, reason=Reason.PAUSED)
    monkeypatch.setattr(group, "run_workers", workers_that(lambda folder: result))
    assert group.train_group(ORDER, trial, SPEC, lambda each: None) == (result, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_group_that_never_came_together_has_failed(
    trial: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "run_workers", workers_that(lambda folder: None))
    with pytest.raises(RuntimeError, match="no room"):
        group.train_group(ORDER, trial, SPEC, lambda each: None)


def test_the_scheduler_ends_all_workers_of_a_trial(
    trial: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []

    def train(folder: AttemptFolder) -> Result:
        write_reports(folder.storage, 0, 2, report(0, 1, 0.1))
        until = time.monotonic() + 5
        while not folder.leave_requested() and time.monotonic() < until:
            time.sleep(0.005)
        left.append(folder.leave_requested())
        return DONE

    def tell(each: dict[str, Any]) -> None:
        raise SystemExit

    monkeypatch.setattr(group, "run_workers", workers_that(train))
    with pytest.raises(SystemExit):
        group.train_group(ORDER, trial, SPEC, tell)
    assert left == [True], "it waits until they have left"
