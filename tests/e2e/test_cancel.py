"""A cancelled job leaves nothing behind, even if one of its processes does not want to go."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.api.views import JobView
from service.client import CapsClient
from service.queue.job import State
from service.reconcile import STOP_GRACE_S
from support.stack import ENDLESS, Stack, until
from support.stubborn import ROUTING, SIGN, install
from workers.attempt import AttemptFolder, ProcessRecord
from workers.liveness import living

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

GONE_WITHIN_S = 15.0
PAIR = ENDLESS | {"artifacts": [], "resources": {"workers": 2, "cpus_per_worker": 1}}


def train(client: CapsClient, spec: dict[str, Any] = PAIR) -> JobView:
    """A job of two workers that trains."""
    job = client.submit(spec)

    def trains() -> bool:
        progress = client.job(job.id).progress
        return progress is not None and (progress.epoch or 0) >= 1

    until(trains, 150, "an epoch")
    return client.job(job.id)


def registered(stack: Stack, job: JobView) -> list[ProcessRecord]:
    """The job's living processes, by their own account."""
    return living(AttemptFolder(stack.home / "storage", job.id, 1).processes())


def cancel(stack: Stack, client: CapsClient, job: JobView) -> float:
    """Cancel, and see all of it gone in time; how long that took."""
    processes = [psutil.Process(record.pid) for record in registered(stack, job)]
    roles = sorted(record.role for record in registered(stack, job))
    assert roles[0] == "driver"
    assert len(processes) >= 3, roles
    processes += [*stack.train_workers(), *stack.workers(job.id)]
    client.cancel(job.id)
    asked = time.monotonic()
    until(lambda: not any(map(_lives, processes)), GONE_WITHIN_S, "its processes gone")
    took = time.monotonic() - asked
    assert not stack.train_workers()
    assert not stack.workers(job.id)
    assert client.wait(job.id, timeout=20).state is State.CANCELLED
    return took


def receipt(client: CapsClient, job: JobView) -> dict[str, Any]:
    """What the last event says of the end."""
    (event,) = [event for event in client.events(job.id) if event.type == "cancelled"]
    assert isinstance(event.data["step"], int)
    assert event.data["step"] >= 36
    return event.data


def check_forced(client: CapsClient, job: JobView, took: float) -> None:
    """It did not go by itself, and the history says so."""
    told = receipt(client, job)
    print(f"gone after {took:.1f} s; {told}")
    assert told["took_s"] >= STOP_GRACE_S
    assert "signalled" in [event.type for event in client.events(job.id)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_two_workers_leave_by_themselves(stack: Stack, client: CapsClient) -> None:
    job = train(client)
    took = cancel(stack, client, job)
    told = receipt(client, job)
    assert told["killed"] is False
    assert isinstance(told["took_s"], float)
    assert 0 < told["took_s"] <= took + 3
    ended = client.job(job.id)
    assert ended.result is not None
    assert "last" in ended.result.checkpoints


@pytest.mark.long
def test_a_frozen_worker_is_killed(stack: Stack, client: CapsClient) -> None:
    """SIGSTOP: it looks at no flag and takes no SIGTERM."""
    job = train(client)
    _, second = stack.train_workers()
    second.suspend()
    took = cancel(stack, client, job)
    check_forced(client, job, took)


@pytest.fixture
def stubborn() -> Iterator[Stack]:
    """A stack with a user's package installed."""
    home = Path(tempfile.mkdtemp(prefix="caps-st-", dir="/tmp"))
    stack = Stack(home)
    stack.environment |= install(home / "package")
    stack.up()
    yield stack
    stack.down()
    shutil.rmtree(home)


@pytest.mark.long
def test_a_worker_that_ignores_sigterm_is_killed(stubborn: Stack) -> None:
    model = PAIR["model"] | {"routing": ROUTING}
    with stubborn.client() as client:
        job = train(client, PAIR | {"model": model})
        Path(stubborn.environment[SIGN]).touch()
        log = stubborn.home / "storage" / "jobs" / job.id / "1" / "log-rank-1.txt"
        until(lambda: "stubborn from now on" in log.read_text(), 30, "it hears nothing any more")
        _, second = stubborn.train_workers()
        second.terminate()
        time.sleep(1.0)
        assert _lives(second), "it should ignore SIGTERM"
        took = cancel(stubborn, client, job)
        check_forced(client, job, took)
