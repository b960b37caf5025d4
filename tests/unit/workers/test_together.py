"""Several workers of one training: what is said when something goes wrong."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.attempt import AttemptFolder, Reason, Result
from workers.stop import StopSignal
from workers.together import Relay, _failure, _first_line

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
    assert _failure(folder, 3, TRAIN) == failed(1, Reason.ERROR)


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
