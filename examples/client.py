"""Submit a job, watch it and read its result with the Python client; the service must be up."""

from service.client import CapsClient

SPEC = {
    "name": "from-python",
    "experiment": "examples",
    "dataset": {"type": "mnist-5k"},
    "model": {"conv_channels": 64, "primary_types": 8, "routing": {"iterations": 1}},
    "optimizer": {"learning_rate": 0.003},
    "epochs": 2,
    "batch_size": 32,
    "precision": "bf16",
}

with CapsClient() as client:
    job = client.submit(SPEC)
    print(f"submitted {job.id}")
    job = client.wait(job.id, on_change=lambda seen: print(seen.phase, seen.waiting_reason or ""))
    assert job.result, job.evidence
    print(f"test accuracy {job.result.metrics['test/accuracy']:.4f}")
    print(f"MLflow run    {job.mlflow.url if job.mlflow else '-'}")
