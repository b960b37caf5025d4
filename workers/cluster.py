"""A driver's connection to Ray, for jobs that have parts elsewhere: searches, several workers."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from workers.specs import ResourcesConfig
from workers.stop import StopSignal

ENVIRONMENT = {
    # Messages of Ray's own that say nothing to whoever reads the job's log.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@contextmanager
def connected(stop: StopSignal) -> Iterator[None]:
    """Ray, to which the job's own environment leads."""
    os.environ.update(ENVIRONMENT)
    import ray

    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    stop.listen()  # Ray takes SIGTERM for itself
    try:
        yield
    finally:
        ray.shutdown()


def bundle(need: ResourcesConfig) -> dict[str, float]:
    """What one worker reserves, by Ray's names."""
    found: dict[str, float] = {"CPU": need.cpus_per_worker}
    if need.gpus_per_worker:
        found["GPU"] = need.gpus_per_worker
    if need.accelerator_type is not None:
        found[f"accelerator_type:{need.accelerator_type}"] = 0.001
    return found
