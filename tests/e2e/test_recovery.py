"""What dies is survived: a worker, MLflow, the API, and `capsctl up` itself.

What is marked long here is done in passing in `tests/chaos` and `test_tracking_outage` as well.
"""

import time
from typing import Any

import pytest

from service.api.views import JobView
from service.client import CapsClient
from service.queue.job import State
from service.stack.processes import tagged
from support.stack import TINY, Stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

EPOCHS = 25
LONG = TINY | {"name": "long", "epochs": EPOCHS, "artifacts": []}


def submit_and_train(client: CapsClient, spec: dict[str, Any] = LONG) -> JobView:
    """A job that has trained for two epochs."""
    job = client.submit(spec)

    def trained() -> bool:
        progress = client.job(job.id).progress
        return progress is not None and (progress.epoch or 0) >= 2

    until(trained, 90, "two epochs")
    return client.job(job.id)


@pytest.mark.long
def test_a_killed_worker_resumes_from_its_checkpoint(stack: Stack, client: CapsClient) -> None:
    job = submit_and_train(client)
    for worker in stack.workers(job.id):
        worker.kill()
    job = client.wait(job.id, timeout=180)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.attempt == 2
    assert "requeued" in [event.type for event in client.events(job.id)]
    log = "".join(chunk.text for chunk in client.follow_logs(job.id))
    assert "resumed from jobs/" in log
    assert job.mlflow is not None
    history = stack.mlflow().get_metric_history(job.mlflow.run_id, "val/accuracy")
    assert [point.step for point in history] == [36 * (epoch + 1) for epoch in range(EPOCHS)]


@pytest.mark.long
def test_a_dead_mlflow_loses_no_metric(stack: Stack, client: CapsClient) -> None:
    job = submit_and_train(client)
    dead = stack.service("mlflow")
    dead.kill()
    job = client.wait(job.id, timeout=240)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.attempt == 1
    assert job.result is not None
    assert job.result.tracking == "complete"
    assert job.mlflow is not None
    history = stack.mlflow().get_metric_history(job.mlflow.run_id, "val/accuracy")
    assert [point.step for point in history] == [36 * (epoch + 1) for epoch in range(EPOCHS)]


def test_a_hanging_mlflow_keeps_no_slot_and_loses_no_checkpoint(
    stack: Stack, client: CapsClient
) -> None:
    job = submit_and_train(client, LONG | {"epochs": 10_000})
    hanging = tagged(stack.home, "mlflow")
    try:
        for process in hanging:
            process.suspend()
        client.cancel(job.id)
        until(lambda: not stack.workers(job.id), 15, "its processes gone")
        job = client.wait(job.id, timeout=15)
    finally:
        for process in hanging:
            process.resume()
    assert job.state is State.CANCELLED
    assert job.result is not None
    assert set(job.result.checkpoints) == {"best", "last"}
    assert job.mlflow is not None
    run = job.mlflow.run_id
    until(lambda: stack.mlflow().get_run(run).info.status == "KILLED", 40, "run KILLED")


@pytest.mark.long
def test_a_killed_api_comes_back_and_the_job_goes_on(stack: Stack, client: CapsClient) -> None:
    job = submit_and_train(client)
    killed = stack.service("api")
    killed.kill()
    until(lambda: stack.state.services["api"].pid != killed.pid, 15, "a new API process")
    job = client.wait(job.id, timeout=180)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.attempt == 1


@pytest.mark.long
def test_a_killed_up_is_taken_over_by_the_next(stack: Stack) -> None:
    with stack.client() as client:
        job = submit_and_train(client)
        before = stack.state.services
        stack.process.kill()
        stack.process.wait()
        time.sleep(2)
        assert stack.workers(job.id), "the training must go on without `up`"
        stack.up()
        assert stack.state.services == before, "living services are adopted, not started again"
        job = client.wait(job.id, timeout=180)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.attempt == 1


def test_a_second_up_is_refused(stack: Stack) -> None:
    answer = stack.capsctl("up")
    assert answer.returncode == 1
    assert "already up" in answer.stderr


def test_down_leaves_a_checkpoint_from_which_the_next_up_goes_on(stack: Stack) -> None:
    with stack.client() as client:
        job = submit_and_train(client, LONG | {"epochs": 10_000})
    stack.down()
    stack.up()
    with stack.client() as client:
        until(lambda: client.job(job.id).attempt == 2, 30, "a second attempt")
        until(lambda: client.job(job.id).phase == "training", 60, "training again")
        assert "interrupted: interrupted stopped at step" in client.logs(job.id, attempt=1).text
        assert "resumed from jobs/" in client.logs(job.id, attempt=2).text
        client.cancel(job.id)
        assert client.wait(job.id, timeout=30).state is State.CANCELLED
