"""A job's images a second beside the library's, on one machine: what the service costs a training.

A job of the paper's net in bf16 and the library's own `Trainer` (the race's contender) take turns;
each rests while the other trains, the job beside Ray, MLflow, the API and its own tracking.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.child import Child
from benchmarks.contenders import Contender, Entry, make_contender
from benchmarks.spread import Spread, ratios, spread
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from service.client import CapsClient
from service.stack.supervisor import Supervisor

BATCH_SIZE = 128
SPEC: dict[str, Any] = {
    "name": "service-speed",
    "experiment": "benchmarks",
    "dataset": {"type": "mnist", "validation_fraction": 0, "per_class": 960},
    "model": {},
    "epochs": 2,
    "batch_size": BATCH_SIZE,
    "precision": "bf16",
    "artifacts": [],
    "resources": {"workers": 1, "cpus_per_worker": 2},
}
"""The paper's net, 75 steps an epoch."""
STEPS = 40
"""Of the library's turn."""
UNCOUNTED = 5
"""A job's first figures: kernels are loaded and memory is touched for the first time."""
PATIENCE_S = 600


def main() -> None:
    """Print each round, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    entry = Entry("ours", "bf16")
    with (
        tempfile.TemporaryDirectory(prefix="caps-b-", dir="/tmp") as folder,
        Child("library", ALLOCATOR_ENVIRONMENT, make_contender, entry, "cpu", BATCH_SIZE) as child,
    ):
        supervisor = Supervisor(Path(folder), print, cpus=2, gpus=0)
        try:
            supervisor.start(lambda: False)
            jobs, library = measure(supervisor, child, rounds)
        finally:
            supervisor.stop()
    print(f"a job: {spread(jobs):,.0f} images/s")
    print(f"the library: {spread(library):,.0f} images/s")
    print(f"ratio: {ratio_of(jobs, library):.2f}")


def ratio_of(jobs: list[float], library: list[float]) -> Spread:
    """Of jobs to the library's turns, of which there is one before and one after each job."""
    beside = [(before + after) / 2 for before, after in itertools.pairwise(library)]
    return ratios(jobs, beside)


def measure(
    supervisor: Supervisor, child: Child[Contender], rounds: int
) -> tuple[list[float], list[float]]:
    """Images a second of each job, and of the library's turns around them."""
    child.ask(Contender.warm_up, "training")
    jobs, library = [], [library_speed(child)]
    for number in range(1, rounds + 1):
        jobs.append(job_speed(supervisor))
        library.append(library_speed(child))
        print(
            f"round {number}, images/s: a job {jobs[-1]:,.0f}, the library before and after "
            f"{library[-2]:,.0f} and {library[-1]:,.0f}",
            flush=True,
        )
    return jobs, library


def library_speed(child: Child[Contender]) -> float:
    """The median of so many steps of `Trainer.fit`."""
    seconds = [child.ask(Contender.turn, "training") for _ in range(STEPS)]
    return BATCH_SIZE / statistics.median(seconds)


def job_speed(supervisor: Supervisor) -> float:
    """The median of what a job tells MLflow as `speed/images_per_s`."""
    with CapsClient(supervisor.state.api_url) as client:
        job = client.wait(client.submit(SPEC).id, timeout=PATIENCE_S)
    if job.mlflow is None:
        raise RuntimeError(f"the job left no run in MLflow: {job}")
    with httpx.Client(base_url=supervisor.state.mlflow_url) as mlflow:
        query = {"run_id": job.mlflow.run_id, "metric_key": "speed/images_per_s"}
        answer = mlflow.get("/api/2.0/mlflow/metrics/get-history", params=query)
        answer.raise_for_status()
    values = [metric["value"] for metric in answer.json()["metrics"]]
    return statistics.median(values[UNCOUNTED:])


if __name__ == "__main__":
    main()
