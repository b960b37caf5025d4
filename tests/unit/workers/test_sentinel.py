"""What ends a process that does not end by itself: a flag, a later attempt, a lost parent."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.search_books import make_attempt, make_spec
from workers import sentinel as module
from workers.attempt import AttemptFolder, Progress
from workers.liveness import living
from workers.sentinel import LEAVE_WITHIN_S, Sentinel
from workers.trials import trial_folder

STUBBORN = """
import signal, sys, threading, time
from pathlib import Path
from workers import sentinel
from workers.attempt import AttemptFolder

signal.signal(signal.SIGTERM, signal.SIG_IGN)
sentinel.LEAVE_WITHIN_S = float(sys.argv[4])
storage, job, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def attend():
    sentinel.attend(AttemptFolder(storage, job, number), "trial-0")

for _ in range(2):  # as an actor does, for one trial after another, each in a thread of its own
    first = threading.Thread(target=attend)
    first.start()
    first.join()
print("ready", flush=True)
while True:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path, "j1", 1)


@pytest.fixture
def stubborn(folder: AttemptFolder) -> Iterator[subprocess.Popen[str]]:
    """A process that ignores SIGTERM and whose main thread never comes back."""
    with start(folder) as process:
        yield process
        process.kill()


def start(folder: AttemptFolder, leave_within_s: float = 0.3) -> subprocess.Popen[str]:
    number = folder.path.name
    command = [sys.executable, "-c", STUBBORN, folder.storage, "j1", number, str(leave_within_s)]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_the_kill_flag_ends_a_process_that_ignores_sigterm(
    folder: AttemptFolder, stubborn: subprocess.Popen[str]
) -> None:
    (record,) = folder.processes()
    assert (record.pid, record.role) == (stubborn.pid, "trial-0")
    assert living([record]) == [record]
    stubborn.terminate()
    assert not ended_within(stubborn, 0.7)
    folder.request_kill()
    assert ended_within(stubborn, 2)
    assert stubborn.returncode == -9
    assert stubborn.stderr is not None
    assert "the kill flag is raised" in stubborn.stderr.read()
    assert living([record]) == []


def test_a_later_attempt_ends_a_process_that_does_not_leave(
    folder: AttemptFolder, stubborn: subprocess.Popen[str]
) -> None:
    AttemptFolder(folder.storage, "j1", 2).write_progress(Progress())
    assert ended_within(stubborn, 3)
    assert stubborn.returncode == -9


def test_what_is_meant_for_others_ends_nothing(
    folder: AttemptFolder, stubborn: subprocess.Popen[str]
) -> None:
    for other in (
        AttemptFolder(folder.storage, "j2", 1),
        AttemptFolder(folder.storage, "j2", 2),
        trial_folder(folder.storage, "j1", 0, 1),
        trial_folder(folder.storage, "j1", 0, 2),
        AttemptFolder(folder.storage, "j1", 0),
    ):
        other.write_progress(Progress())
        other.request_kill()
    assert not ended_within(stubborn, 1.6)


def test_a_process_of_an_attempt_that_is_over_ends_at_once(folder: AttemptFolder) -> None:
    AttemptFolder(folder.storage, "j1", 2).write_progress(Progress())
    with start(folder, leave_within_s=60) as late:
        assert ended_within(late, 2)
        assert late.returncode == -9
    assert len(folder.processes()) == 1, "it was registered before it looked"


def test_a_real_worker_is_ended_by_the_flag(tmp_path: Path) -> None:
    """`python -m workers`, in the middle of its imports."""
    folder = AttemptFolder(tmp_path, "s1", 1)
    folder.write_attempt(make_attempt(make_spec()))
    command = [sys.executable, "-m", "workers", "s1", "1"]
    environment = {"CAPS_STORAGE": str(tmp_path), "PATH": "", "RAY_ADDRESS": "127.0.0.1:1"}
    with subprocess.Popen(command, env=environment, stderr=-1, text=True) as worker:
        until = time.monotonic() + 20
        while folder.heartbeat() is None:
            assert time.monotonic() < until
            assert worker.poll() is None
            time.sleep(0.02)
        (record,) = folder.processes()
        assert (record.pid, record.role) == (worker.pid, "driver")
        folder.request_kill()
        assert ended_within(worker, 2)
    assert worker.returncode == -9
    assert folder.read_result() is None


# ------------------------------------------------------------------------------ what it decides


def test_a_later_attempt_is_given_time_to_let_us_leave(folder: AttemptFolder) -> None:
    sentinel, later = Sentinel(folder), AttemptFolder(folder.storage, "j1", 2)
    assert sentinel.verdict(100) == ""
    later.write_progress(Progress())
    assert sentinel.verdict(101) == ""
    assert sentinel.verdict(101 + LEAVE_WITHIN_S) == ""
    assert "later attempt" in sentinel.verdict(101.1 + LEAVE_WITHIN_S)


def test_a_storage_that_is_away_ends_nothing_and_forgets_nothing(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = Sentinel(folder)
    AttemptFolder(folder.storage, "j1", 2).write_progress(Progress())
    assert sentinel.verdict(100) == ""

    def away(self: AttemptFolder) -> bool:
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(AttemptFolder, "superseded", away)
        with pytest.raises(OSError, match="stale"):
            sentinel.verdict(200)
    assert "later attempt" in sentinel.verdict(201)


def test_whoever_has_lost_its_parent_ends_even_where_the_storage_is_away(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = Sentinel(folder)
    monkeypatch.setattr(module.os, "getppid", lambda: 1)
    monkeypatch.setattr(AttemptFolder, "kill_requested", lambda self: 1 / 0)
    assert sentinel.verdict(100) == "its parent is gone"
