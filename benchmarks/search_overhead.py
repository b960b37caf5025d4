"""What a trial of a search costs beyond its training, as a plain loop does it.

A search over REST, a grid of a few trainings with several seeds, one trial at a time, through the
queue, Ray Tune, checkpoints and MLflow. Beside it one process that has the data in memory and does
nothing but `Trainer(config, dataset).fit()`, before the search and after it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from service.client import CapsClient
from service.stack.supervisor import Supervisor
from workers.search_specs import SearchSpec
from workers.trials import Trial, read_table

PATIENCE_S = 900


def search_document(seeds: int, concurrency: int) -> dict[str, Any]:
    """A 2 x 2 grid of nets that learn digits for a few seconds."""
    return {
        "name": "overhead",
        "experiment": "benchmarks",
        "base": {
            "dataset": {"type": "mnist-5k"},
            "model": {"conv_channels": 16, "primary_types": 4, "decoder": {"hidden": [64]}},
            "optimizer": {"learning_rate": 3e-3},
            "epochs": 2,
            "batch_size": 100,
            "resources": {"cpus_per_worker": 1},
        },
        "space": {
            "model.routing.iterations": {"type": "grid", "values": [1, 3]},
            "loss.reconstruction_weight": {"type": "grid", "values": [0, 5e-4]},
        },
        "algorithm": {"type": "grid"},
        "seeds": seeds,
        "concurrency": concurrency,
        "keep_top": 1,
    }


def main() -> None:
    """Print each trial and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        print(json.dumps(plain_loop(arguments.seeds)))
        return
    with tempfile.TemporaryDirectory(prefix="caps-b-", dir="/tmp") as folder:
        supervisor = Supervisor(Path(folder), print, cpus=2, gpus=0)
        try:
            supervisor.start(lambda: False)
            report(supervisor, arguments.seeds)
        finally:
            supervisor.stop()


def report(supervisor: Supervisor, seeds: int) -> None:
    """Plain loop, search, plain loop; then a search with two trials at once."""
    print("the plain loop, the search, the plain loop again ...", flush=True)
    before = plain_in_a_process(seeds)
    trials = run_search(supervisor, seeds, concurrency=1)
    after = plain_in_a_process(seeds)
    plain = [(first + second) / 2 for first, second in zip(before, after, strict=True)]
    taken = turns(trials)
    overheads = [whole - alone for whole, alone in zip(taken, plain[1:], strict=True)]
    print("trial  in the search  plain loop  beyond it   (seconds)")
    for number, (whole, alone) in enumerate(zip(taken, plain[1:], strict=True), start=1):
        print(f"{number:5}  {whole:13.2f}  {alone:10.2f}  {whole - alone:9.2f}")
    middle = statistics.median(overheads)
    print(f"median training in the plain loop: {statistics.median(plain):.2f} s")
    print(f"median of a trial beyond its training: {middle:.2f} s")
    print(f"finished trials a minute, one at a time: {per_minute(trials):.1f}", flush=True)
    twice = run_search(supervisor, seeds, concurrency=2)
    print(f"finished trials a minute, two at a time: {per_minute(twice):.1f}")


def run_search(supervisor: Supervisor, seeds: int, concurrency: int) -> list[Trial]:
    """The trials of a search, in the order in which they ended."""
    with CapsClient(supervisor.state.api_url) as client:
        search = client.submit_search(search_document(seeds, concurrency))
        client.wait(search.id, timeout=PATIENCE_S)
    folder = supervisor.home / "storage" / "jobs" / search.id / "1" / "trials.jsonl"
    trials = read_table(folder).trials.values()
    assert all(trial.state == "SUCCEEDED" for trial in trials), list(trials)
    return sorted(trials, key=lambda trial: trial.ended_at or 0.0)


def turns(trials: list[Trial]) -> list[float]:
    """Seconds from the end of each trial to the end of the next; the first warms up."""
    ends = [trial.ended_at or 0.0 for trial in trials]
    return [end - earlier for earlier, end in pairwise(ends)]


def per_minute(trials: list[Trial]) -> float:
    """Trials that ended after the first one, by the time that took."""
    ends = [trial.ended_at or 0.0 for trial in trials]
    return 60 * (len(ends) - 1) / (ends[-1] - ends[0])


def plain_in_a_process(seeds: int) -> list[float]:
    """The plain loop in a process with the threads and the allocator that a trial has."""
    from service.cluster import WORKER_ENVIRONMENT

    environment = os.environ | WORKER_ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.search_overhead", "--plain", f"--seeds={seeds}"]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: list[float] = json.loads(answer.stdout)
    return found


def plain_loop(seeds: int) -> list[float]:
    """Seconds of each training of the search, in its order; the first one is done twice."""
    import torch

    from capsmodel.datasets import load_dataset
    from capsmodel.training import Trainer

    torch.set_num_threads(1)
    spec = SearchSpec.model_validate_json(json.dumps(search_document(seeds, concurrency=1)))
    dataset = load_dataset(spec.base.dataset)
    orders = [(c, s) for c in range(spec.configurations) for s in range(spec.seeds)]
    taken = []
    for configuration, seed in [orders[0], *orders]:
        config = spec.variant(spec.configuration(configuration), seed).training
        started = time.perf_counter()
        Trainer(config, dataset).fit()
        taken.append(time.perf_counter() - started)
    return taken[1:]


if __name__ == "__main__":
    main()
