"""Jobs with several workers, and reservations of GPUs."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.views import JobView
from service.client import CapsClient
from service.queue.job import State
from support.stack import ENDLESS, TINY, Stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PAIR = {"workers": 2, "cpus_per_worker": 1}


def epochs(stack: Stack, job: JobView, name: str) -> list[float]:
    assert job.mlflow is not None
    history = stack.mlflow().get_metric_history(job.mlflow.run_id, name)
    return [point.value for point in history]


def test_two_workers_learn_as_one_does(stack: Stack, client: CapsClient) -> None:
    single = client.submit(TINY | {"name": "one", "epochs": 3})
    double = client.submit(TINY | {"name": "two", "epochs": 3, "resources": PAIR})
    single = client.wait(single.id, timeout=120)
    double = client.wait(double.id, timeout=180)
    assert double.state is State.SUCCEEDED, double.evidence
    assert double.result is not None
    assert double.result.tracking == "complete"
    # Sums in another order: 2e-7 after a step, and every step carries it on.
    for part in ("train_epoch", "val"):
        alone, together = (epochs(stack, job, f"{part}/total_loss") for job in (single, double))
        assert len(alone) == 3
        assert together == pytest.approx(alone, rel=2e-3)
        assert together[0] == pytest.approx(alone[0], rel=1e-4)
    log = client.logs(double.id).text
    assert "epoch 3/3" in log
    folder = stack.home / "storage" / "jobs" / double.id / "1"
    assert (folder / "log-rank-1.txt").exists()


@pytest.mark.long
def test_a_killed_worker_costs_an_attempt_and_nothing_else(
    stack: Stack, client: CapsClient
) -> None:
    job = client.submit(TINY | {"epochs": 15, "artifacts": [], "resources": PAIR})

    def trained() -> bool:
        progress = client.job(job.id).progress
        return progress is not None and progress.epoch >= 2

    until(trained, 120, "two epochs")
    _, second = stack.train_workers()
    second.kill()
    job = client.wait(job.id, timeout=240)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.attempt == 2
    requeued = [event for event in client.events(job.id) if event.type == "requeued"]
    assert "worker-lost" in requeued[0].message
    assert "resumed from jobs/" in client.logs(job.id).text
    assert len(epochs(stack, job, "val/accuracy")) == 15


@pytest.mark.long
def test_a_cancelled_job_takes_its_workers_along(stack: Stack, client: CapsClient) -> None:
    job = client.submit(ENDLESS | {"resources": PAIR})
    until(lambda: client.job(job.id).phase == "training", 120, "training")
    assert len(stack.train_workers()) == 2
    client.cancel(job.id)
    until(lambda: not stack.train_workers() and not stack.workers(job.id), 30, "all of it gone")
    ended = client.wait(job.id, timeout=20)
    assert ended.state is State.CANCELLED
    assert ended.result is not None
    assert "last" in ended.result.checkpoints


@pytest.mark.long
def test_trials_with_several_workers(client: CapsClient) -> None:
    base: dict[str, Any] = {k: v for k, v in TINY.items() if k not in ("name", "experiment")}
    search = client.submit_search(
        {
            "name": "pairs",
            "experiment": "searches",
            "base": base | {"resources": PAIR},
            "space": {"model.routing.iterations": {"type": "grid", "values": [1, 2]}},
            "algorithm": {"type": "grid"},
            "concurrency": 1,
        }
    )
    search = client.wait_search(search.id, timeout=270)
    assert search.state is State.SUCCEEDED, search.evidence
    trials = list(client.trials(search.id))
    assert [trial.state for trial in trials] == ["SUCCEEDED", "SUCCEEDED"]
    assert all(trial.epoch == 2 and (trial.score or 0) > 0.5 for trial in trials)


@pytest.fixture(scope="module")
def gpus() -> Iterator[Stack]:
    """A stack whose node pretends to have two GPUs; the trainings take the CPU."""
    home = Path(tempfile.mkdtemp(prefix="caps-gpu-", dir="/tmp"))
    stack = Stack(home)
    stack.environment["CAPS_DEVICE"] = "cpu"
    stack.up("--cpus", "8", "--gpus", "2")
    yield stack
    stack.down()
    shutil.rmtree(home)


def visible(log: str) -> str:
    found = re.search(r"CUDA_VISIBLE_DEVICES=(\S*)\)", log)
    return found.group(1) if found else ""


@pytest.mark.long
def test_jobs_see_a_gpu_each_and_halves_share_them(gpus: Stack) -> None:
    whole = ENDLESS | {"resources": {"cpus_per_worker": 1, "gpus_per_worker": 1}}
    with gpus.client() as client:
        jobs = [client.submit(whole | {"name": f"gpu-{n}"}).id for n in range(2)]
        until(lambda: all(client.job(i).phase == "training" for i in jobs), 120, "both training")
        assert sorted(visible(client.logs(i).text) for i in jobs) == ["0", "1"]
        third = client.submit(whole).id
        until(lambda: client.job(third).waiting_reason, 10, "a reason to wait")
        for i in (*jobs, third):
            client.cancel(i)
        for i in (*jobs, third):
            client.wait(i, timeout=60)

        base = {k: v for k, v in ENDLESS.items() if k not in ("name", "experiment")}
        halves = base | {"resources": {"cpus_per_worker": 1, "gpus_per_worker": 0.5}}
        search = client.submit_search(
            {
                "name": "halves",
                "base": halves,
                "space": {"loss.m_minus": {"type": "grid", "values": [0.05, 0.1, 0.15, 0.2]}},
                "algorithm": {"type": "grid"},
                "concurrency": 4,
            }
        )
        until(lambda: client.search(search.id).counts.running == 4, 150, "four trials at once")

        def logs() -> list[str]:
            return [visible(client.trial_log(search.id, n).text) for n in range(4)]

        until(lambda: all(logs()), 60, "what they see")
        assert sorted(logs()) == ["0", "0", "1", "1"]
        client.cancel(search.id)
        client.wait_search(search.id, timeout=60)
