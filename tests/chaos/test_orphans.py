"""Proof of death, proven: no process of a job outlives what it hangs on for longer than we wait.

A new attempt may start once the cluster's session is another one and the reconnect timeout plus a
margin has passed. What this rests on is Ray's own behaviour, so it is tried with real daemons, a
training of one worker and one of two.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from chaos.aside import Aside
from chaos.nodes import Nodes, gone, trainings, wait_gone, words
from service.reconcile import SESSION_MARGIN_S
from service.settings import RECONNECT_TIMEOUT_S
from service.stack.processes import tagged
from support.stack import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

AT_ONCE_S = 8.0
"""For what needs no timeout: a closed socket, or a dead parent. Some 1.5 s where nothing else
runs."""
FROZEN_S = 40.0
AFTERWARDS_S = 10.0
"""Time for whoever would notice the silence too late."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="caps-or-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def check_gone(nodes: Nodes, jobs: dict[str, list[psutil.Process]], seconds: float) -> None:
    """All processes of the jobs are gone in time, and nobody has taken their place."""
    assert jobs["worker of one"]
    assert jobs["driver of two"]
    assert len(jobs["Train workers"]) == 2
    times = wait_gone(jobs, seconds + 30)
    print(f"\ngone after, in s: {times}")
    late = {role: at for role, at in times.items() if at is None or at > seconds}
    assert not late, f"outlive {seconds} s: {late}"
    left = nodes.processes("-m workers") + nodes.processes("RayTrainWorker")
    assert not left, [words(process) for process in left]


@pytest.mark.parametrize("victim", ["gcs_server", "raylet", "JobSupervisor"])
def test_nothing_outlives_a_daemon_of_its_own_node(home: Path, victim: str) -> None:
    with trainings(home, on="head") as nodes:
        jobs = nodes.of_jobs()
        if victim == "JobSupervisor":
            doomed = jobs["supervisor of a job"]
        else:
            doomed = [nodes.daemon(victim, "head")]
        for process in doomed:
            process.kill()
        check_gone(nodes, jobs, AT_ONCE_S)


class Reviver(Aside):
    """Starts the head again as often as it ends, as `capsctl up` does.

    On one machine Ray refuses a second head while another node's processes name the first.
    """

    def __init__(self, nodes: Nodes) -> None:
        super().__init__("reviver", every_s=0.5)
        self._nodes = nodes

    def look(self) -> None:
        """Start it unless it lives."""
        if self._nodes.starters["head"].poll() is not None:
            self._nodes.start("head", room=False)


@pytest.mark.parametrize("again", [False, True])
def test_nothing_outlives_a_head_elsewhere(home: Path, again: bool) -> None:
    """The head is another node than the jobs': it dies for good, or comes back when it can."""
    with trainings(home, on="second") as nodes:
        jobs, before = nodes.of_jobs(), nodes.session()
        for process in tagged(home, "head"):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        nodes.starters["head"].wait()
        reviver = Reviver(nodes)
        if again:
            reviver.start()
        try:
            # Counted from the kill: the control plane counts from when it sees the new session.
            check_gone(nodes, jobs, RECONNECT_TIMEOUT_S + SESSION_MARGIN_S)
            if again:
                until(lambda: nodes.session() not in (None, before), 60, "another head")
        finally:
            reviver.stop()


@pytest.mark.parametrize("victim", ["raylet", "ray start"])
def test_nothing_outlives_its_node(home: Path, victim: str) -> None:
    """The node is another one than the head; `ray start --block` takes its daemons along."""
    with trainings(home, on="second") as nodes:
        jobs = nodes.of_jobs()
        if victim == "raylet":
            nodes.daemon("raylet", "second").kill()
        else:
            nodes.starters["second"].kill()
        check_gone(nodes, jobs, AT_ONCE_S)


def test_a_frozen_head_is_the_same_session_and_costs_nobody_his_life(home: Path) -> None:
    with trainings(home, on="second") as nodes:
        jobs, before = nodes.of_jobs(), nodes.session()
        frozen = tagged(home, "head")
        for process in frozen:
            process.suspend()
        time.sleep(FROZEN_S)
        for process in frozen:
            process.resume()
        time.sleep(AFTERWARDS_S)
        assert nodes.session() == before
        assert not any(gone(process) for found in jobs.values() for process in found)
