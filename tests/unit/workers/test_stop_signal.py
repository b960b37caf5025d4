"""Whether the worker is asked to leave."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import stop as module
from workers.attempt import AttemptFolder, Progress
from workers.stop import StopSignal


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
