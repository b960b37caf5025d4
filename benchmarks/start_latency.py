"""From submit to the first training step: our job, and a bare TorchTrainer job with one worker.

Both train the same tiny net on the same digits on the same warm Ray head, by turns; the bare one is
submitted straight to Ray's Jobs API and does nothing else: no queue, no tracking, no checkpoint.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import httpx

from service.client import CapsClient
from service.stack.state import token_path
from service.stack.supervisor import Supervisor
from workers.attempt import AttemptFolder

SPEC = {
    "name": "start-latency",
    "experiment": "benchmarks",
    "dataset": {"type": "mnist-5k"},
    "model": {"conv_channels": 8, "primary_types": 2, "decoder": {"hidden": [16]}},
    "epochs": 1,
    "batch_size": 100,
    "artifacts": [],
}
PATIENCE_S = 180


def main() -> None:
    """Print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="caps-b-", dir="/tmp") as folder:
        supervisor = Supervisor(Path(folder), print, cpus=2, gpus=0)
        try:
            supervisor.start(lambda: False)
            ours, bare = measure(supervisor, rounds)
        finally:
            supervisor.stop()
    ours_median, bare_median = statistics.median(ours), statistics.median(bare)
    print(f"ours: median of {rounds}: {ours_median:.1f} s")
    print(f"bare TorchTrainer: median of {rounds}: {bare_median:.1f} s")
    print(f"ratio: {ours_median / bare_median:.2f}")


def measure(supervisor: Supervisor, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to the first step of each round; the first of both is not counted."""
    ours, bare = [], []
    for number in range(rounds + 1):
        ours.append(start_ours(supervisor))
        bare.append(start_bare(supervisor))
        note = " (warm-up, not counted)" if number == 0 else ""
        print(f"round {number}: ours {ours[-1]:.1f} s, bare {bare[-1]:.1f} s{note}", flush=True)
    return ours[1:], bare[1:]


def start_ours(supervisor: Supervisor) -> float:
    """One job through the service."""
    with CapsClient(supervisor.state.api_url) as client:
        submitted = time.time()
        job = client.wait(client.submit(SPEC).id, timeout=PATIENCE_S)
    folder = AttemptFolder(supervisor.home / "storage", job.id, job.attempt)
    progress = folder.read_progress()
    assert progress is not None, job
    assert progress.first_step_at is not None, job
    return progress.first_step_at - submitted


def start_bare(supervisor: Supervisor) -> float:
    """One TorchTrainer job, straight to Ray."""
    token = token_path(supervisor.home).read_text()
    mark = supervisor.home / f"first-step-{uuid.uuid4().hex}"
    script = Path(__file__).with_name("bare_torch_trainer.py")
    arguments = [str(mark), str(supervisor.home / "train"), json.dumps(SPEC)]
    body = {
        "submission_id": f"bare-{mark.name[-8:]}",
        "entrypoint": shlex.join(["exec", sys.executable, str(script), *arguments]),
        "runtime_env": {
            "env_vars": {"RAY_ADDRESS": f"127.0.0.1:{supervisor.state.ports['ray_gcs']}"}
        },
    }
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=supervisor.state.ray_address, headers=headers) as ray:
        submitted = time.time()
        ray.post("/api/jobs/", json=body).raise_for_status()
        while True:
            job = ray.get(f"/api/jobs/{body['submission_id']}").json()
            if job["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
                break
            if time.time() - submitted > PATIENCE_S:
                raise TimeoutError(f"the bare job did not end: {job}")
            time.sleep(0.2)
        if not mark.exists():
            logs = ray.get(f"/api/jobs/{body['submission_id']}/logs").json()["logs"]
            raise RuntimeError(f"the bare job failed:\n{logs}")
    return float(mark.read_text()) - submitted


if __name__ == "__main__":
    main()
