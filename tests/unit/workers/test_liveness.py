"""Which of an attempt's processes live: what this host can see of them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workers import process
from workers.attempt import ProcessRecord
from workers.liveness import created, elsewhere, kill, living, own_record
from workers.process import host_id

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPER) as started:
        yield started
        started.kill()


def record_of(pid: int) -> ProcessRecord:
    return ProcessRecord(host=host_id(), pid=pid, created=created(pid), role="worker")


def test_a_process_knows_itself_as_others_know_it() -> None:
    code = (
        "import os; from workers.liveness import own_record;"
        "print(own_record('rank-1').model_dump_json(), flush=True); input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        told = ProcessRecord.model_validate_json(other.stdout.readline())
        assert told == record_of(other.pid).model_copy(update={"role": "rank-1"})
        assert living([told]) == [told]
        other.communicate("\n")
    assert living([told]) == []


def test_a_zombie_holds_nothing_and_so_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    record = record_of(sleeper.pid)
    assert living([own_record("worker"), record])[1:] == [record]
    assert kill(record)
    until = time.monotonic() + 5
    while living([record]):
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.01)
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE  # nobody has waited for it
    assert not kill(record)


def test_a_process_with_an_id_of_before_is_another(sleeper: subprocess.Popen[bytes]) -> None:
    reused = record_of(sleeper.pid).model_copy(update={"created": created(sleeper.pid) - 60})
    assert living([reused]) == []
    assert not kill(reused)
    assert sleeper.poll() is None


def test_nothing_is_said_or_done_about_other_hosts(sleeper: subprocess.Popen[bytes]) -> None:
    there = record_of(sleeper.pid).model_copy(update={"host": "there"})
    here = record_of(sleeper.pid)
    assert living([there, here]) == [here]
    assert elsewhere([there, here]) == [there]
    with pytest.raises(ValueError, match="is of host there"):
        kill(there)
    assert sleeper.poll() is None


def test_a_process_that_never_was_is_gone() -> None:
    record = ProcessRecord(host=host_id(), pid=2**22 + 1, created=1.0)
    assert living([record]) == []
    assert not kill(record)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_clock_that_is_set_changes_no_time_of_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds since the host's start: about what psutil says, and never a time of day."""
    found = created(os.getpid())
    since_start = psutil.Process().create_time() - psutil.boot_time()
    assert abs(found - since_start) < 2
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert created(os.getpid()) == found


def test_a_host_is_known_by_boot_and_namespace_or_by_its_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host_id.cache_clear()
    found = host_id()
    if sys.platform.startswith("linux"):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert found == f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"

    def away(self: Path) -> str:
        raise OSError("no /proc here")

    host_id.cache_clear()
    monkeypatch.setattr(process.Path, "read_text", away)
    try:
        fallback = host_id()
        assert fallback == f"{process.uuid.getnode():012x}-{process.socket.gethostname()}"
        assert "/" not in fallback
    finally:
        host_id.cache_clear()
