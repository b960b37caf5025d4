"""One job, all the way through: REST, queue, Ray, training, MLflow."""

import mlflow
import numpy as np
import pytest
import torch

from capsmodel.checkpoint import load_checkpoint
from capsmodel.config import Mnist5kConfig
from capsmodel.datasets import load_dataset
from capsmodel.model import build_model
from service.api.views import JobView
from service.client import ApiError, CapsClient
from service.queue.job import State
from support.stack import ENDLESS, TINY, Stack, until
from workers.specs import TrainSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def done(stack: Stack) -> JobView:
    """A small job that ran to its end."""
    with stack.client() as client:
        job = client.submit(TINY | {"labels": {"team": "tests"}, "description": "A *tiny* net."})
        job = client.wait(job.id, timeout=180)
    assert job.state is State.SUCCEEDED, job.evidence
    return job


def test_a_finished_job_tells_its_result(done: JobView) -> None:
    assert done.attempt == 1
    assert done.reason == "completed"
    assert done.result is not None
    assert done.result.tracking == "complete"
    assert (done.result.metrics["test/accuracy"] or 0) > 0.5
    assert set(done.result.checkpoints) == {"best", "last"}
    assert done.progress is not None
    assert done.progress.step == done.progress.steps == 72


def test_every_change_is_an_event(client: CapsClient, done: JobView) -> None:
    types = [event.type for event in client.events(done.id)]
    assert types == ["submitted", "started", "dispatched", "succeeded"]


def test_the_log_is_whole(client: CapsClient, done: JobView) -> None:
    text = "".join(chunk.text for chunk in client.follow_logs(done.id))
    assert "epoch 2/2" in text
    assert "succeeded: completed" in text


def test_the_run_is_finished_and_holds_the_specification(stack: Stack, done: JobView) -> None:
    assert done.mlflow is not None
    mlflow_client = stack.mlflow()
    until(lambda: mlflow_client.get_run(done.mlflow.run_id).info.status == "FINISHED", 10, "ended")
    run = mlflow_client.get_run(done.mlflow.run_id)
    assert run.data.params["model.routing.iterations"] == "3"
    assert run.data.params["loss.lambda"] == "0.5"
    assert run.data.tags["team"] == "tests"
    assert run.data.tags["caps.job"] == done.id
    assert run.data.tags["caps.attempt"] == "1"
    assert "A *tiny* net." in run.data.tags["mlflow.note.content"]
    assert "## Results" in run.data.tags["mlflow.note.content"]
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "mnist-5k"
    assert load_dataset(Mnist5kConfig()).sha256.startswith(dataset.digest)


def test_the_run_has_every_kind_of_metric(stack: Stack, done: JobView) -> None:
    assert done.mlflow is not None
    metrics = stack.mlflow().get_run(done.mlflow.run_id).data.metrics
    for part in ("train", "val", "test", "test_last"):
        for measure in ("total_loss", "classification_loss", "reconstruction_loss", "accuracy"):
            assert f"{part}/{measure}" in metrics
    assert metrics["speed/images_per_s"] > 0
    assert 0 < metrics["train/learning_rate"] <= 3e-3
    history = stack.mlflow().get_metric_history(done.mlflow.run_id, "val/accuracy")
    assert [point.step for point in history] == [36, 72]


def test_the_run_has_spec_checkpoints_and_sheets(stack: Stack, done: JobView) -> None:
    assert done.mlflow is not None
    client = stack.mlflow()

    def names(folder: str) -> set[str]:
        listed = client.list_artifacts(done.mlflow.run_id, folder)
        return {entry.path.split("/")[-1] for entry in listed}

    assert "spec.json" in names("")
    assert names("checkpoints/best") == {"best.pt", "best.pt.json"}
    assert names("checkpoints/last") == {"last.pt", "last.pt.json"}
    assert names("sheets") == {
        "reconstruction-sheet-validation-epoch-0001.png",
        "reconstruction-sheet-test-epoch-0002.png",
        "perturbation-sheet-test-epoch-0002.png",
    }
    assert any("reconstruction-sheet" in name for name in names("images"))


def test_the_logged_model_agrees_with_the_checkpoint(stack: Stack, done: JobView) -> None:
    assert done.mlflow is not None
    assert done.result is not None
    mlflow.set_tracking_uri(stack.state.mlflow_url)
    outputs = stack.mlflow().get_run(done.mlflow.run_id).outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{outputs[0].model_id}")
    images = load_dataset(Mnist5kConfig()).test_images[:5].float() / 255
    answer = model.predict(images.numpy())

    best = done.result.checkpoints["best"]
    state = load_checkpoint(stack.home / "storage" / best.path, best.sha256)
    net = build_model(TrainSpec.model_validate(done.spec).model)
    net.load_state_dict(state["model"])
    net.eval()
    with torch.no_grad():
        expected = net(images)
    assert answer["classes"].tolist() == expected.lengths.argmax(dim=1).tolist()
    np.testing.assert_allclose(answer["lengths"], expected.lengths.numpy(), atol=1e-6)
    np.testing.assert_allclose(answer["poses"], expected.poses.numpy(), atol=1e-6)
    assert expected.reconstruction is not None
    np.testing.assert_allclose(answer["reconstruction"], expected.reconstruction.numpy(), atol=1e-6)


def test_a_job_continues_from_another_jobs_weights(client: CapsClient, done: JobView) -> None:
    assert done.result is not None
    job = client.submit(TINY | {"epochs": 1, "init_from": {"job": done.id, "checkpoint": "last"}})
    job = client.wait(job.id, timeout=120)
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.result is not None
    # One epoch from scratch stays far below what two epochs reached.
    assert (job.result.metrics["test/accuracy"] or 0) >= (
        (done.result.metrics["test/accuracy"] or 0) - 0.05
    )


def test_missing_data_fails_with_a_reason_and_a_hint(client: CapsClient) -> None:
    spec = TINY | {"dataset": {"type": "fashion-mnist"}}
    job = client.wait(client.submit(spec).id, timeout=120)
    assert job.state is State.FAILED
    assert job.reason == "data-missing"
    assert "data/fashion-mnist" in job.evidence
    assert job.hint
    assert "CAPS_DATA_DIR" in job.hint


def test_a_job_that_can_never_fit_is_refused(client: CapsClient) -> None:
    with pytest.raises(ApiError) as refused:
        client.submit(TINY | {"resources": {"cpus_per_worker": 64}})
    (wrong,) = refused.value.errors
    assert (wrong.pointer, wrong.value) == ("/resources/cpus_per_worker", 64)
    assert "CAPS_ELASTIC" in (refused.value.hint or "")


def test_a_deadline_stops_a_job(client: CapsClient) -> None:
    job = client.wait(client.submit(ENDLESS | {"max_runtime_s": 12}).id, timeout=120)
    assert job.state is State.FAILED
    assert job.reason == "deadline"


def test_a_cancelled_job_is_gone_within_15_s(stack: Stack, client: CapsClient) -> None:
    job = client.submit(ENDLESS)
    until(lambda: client.job(job.id).phase == "training", 60, "training")
    assert stack.workers(job.id)
    client.cancel(job.id)
    until(lambda: not stack.workers(job.id), 15, "its processes gone")
    ended = client.wait(job.id, timeout=15)
    assert ended.state is State.CANCELLED
    assert ended.mlflow is not None
    run = ended.mlflow.run_id
    until(lambda: stack.mlflow().get_run(run).info.status == "KILLED", 15, "run KILLED")
