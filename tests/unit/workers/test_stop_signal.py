"""Whether the worker is asked to leave."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import stop as module
from workers.attempt import AttemptFolder, Progress, StopKind
from workers.stop import StopFlag, StopSignal
from workers.trials import trial_folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[AttemptFolder]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield AttemptFolder(tmp_path, "j1", 1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_nothing_is_asked_at_first(folder: AttemptFolder) -> None:
    assert StopSignal(folder).cause() is None


@pytest.mark.parametrize("kind", ["cancel", "pause"])
def test_the_flag_is_seen(folder: AttemptFolder, kind: str) -> None:
    folder.request_stop(kind)
    assert StopSignal(folder).cause() == kind


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_seen_at_once_and_breaks_nothing_off(
    folder: AttemptFolder, number: signal.Signals
) -> None:
    stop = StopSignal(folder)
    assert stop.cause() is None
    os.kill(os.getpid(), number)
    assert stop.cause() == "signal"


def test_a_flag_tells_more_than_the_signal_that_follows_it(folder: AttemptFolder) -> None:
    stop = StopSignal(folder)
    folder.request_stop("cancel")
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.cause() == "cancel"


def test_a_later_attempt_comes_before_all_else(folder: AttemptFolder) -> None:
    folder.request_stop("cancel")
    AttemptFolder(folder.storage, "j1", 2).write_progress(Progress())
    assert StopSignal(folder).cause() == "superseded"


def test_the_first_cause_stays(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0)
    stop = StopSignal(folder)
    folder.request_stop("pause")
    assert stop.cause() == "pause"
    folder.request_stop("cancel")
    assert stop.cause() == "pause"


def test_the_folder_is_looked_at_now_and_then(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def superseded(self: AttemptFolder) -> bool:
        looks.append(1)
        return False

    monkeypatch.setattr(AttemptFolder, "superseded", superseded)
    stop = StopSignal(folder)
    for _ in range(1000):
        stop.cause()
    assert len(looks) <= 2


# -------------------------------------------------------------------- several folders, deadlines


@pytest.fixture
def trial(folder: AttemptFolder) -> AttemptFolder:
    return trial_folder(folder.storage, "j1", 0, 1)


@pytest.mark.parametrize("kind", ["cancel", "pause"])
@pytest.mark.parametrize("whose", ["search", "trial"])
def test_a_trial_watches_its_searchs_folder_and_its_own(
    folder: AttemptFolder, trial: AttemptFolder, kind: StopKind, whose: str
) -> None:
    assert StopFlag(folder, trial).cause() is None
    (folder if whose == "search" else trial).request_stop(kind)
    assert StopFlag(folder, trial).cause() == kind


def test_what_the_search_is_asked_for_comes_first(
    folder: AttemptFolder, trial: AttemptFolder
) -> None:
    trial.request_stop("cancel")
    folder.request_stop("pause")
    assert StopFlag(folder, trial).cause() == "pause"


@pytest.mark.parametrize("number", [0, 1])
def test_a_driver_that_must_go_takes_its_workers_along(
    folder: AttemptFolder, trial: AttemptFolder, number: int
) -> None:
    (folder, trial)[number].request_leave()
    assert StopFlag(folder, trial).cause() == "signal"


def test_a_flag_tells_more_than_leaving(folder: AttemptFolder) -> None:
    folder.request_leave()
    folder.request_stop("pause")
    assert StopFlag(folder).cause() == "pause"


def test_a_later_attempt_of_the_search_ends_its_trials(
    folder: AttemptFolder, trial: AttemptFolder
) -> None:
    AttemptFolder(folder.storage, "j1", 2).write_progress(Progress())
    assert StopFlag(folder, trial).cause() == "superseded"


def test_time_is_over_at_the_deadline_and_not_before(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stop, patient = StopFlag(folder, seconds=10), StopFlag(folder)
    for now[0], cause in [(100.0, None), (109.9, None), (110.2, "deadline"), (1e6, "deadline")]:
        assert stop.cause() == cause
        assert patient.cause() is None


def test_a_flag_tells_more_than_the_deadline(folder: AttemptFolder) -> None:
    folder.request_stop("cancel")
    assert StopFlag(folder, seconds=-1).cause() == "cancel"


def test_a_folder_that_cannot_be_read_just_now_stops_nothing(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: AttemptFolder) -> bool:
        raise OSError("stale file handle")

    monkeypatch.setattr(AttemptFolder, "superseded", away)
    assert StopFlag(folder).cause() is None
    assert StopFlag(folder, seconds=-1).cause() == "deadline"


def test_signals_are_taken_back_from_a_library(folder: AttemptFolder) -> None:
    stop = StopSignal(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.cause() == "signal"
