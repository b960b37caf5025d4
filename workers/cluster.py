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
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class ClusterLostError(RuntimeError):
    """The cluster, or what runs on it for this driver, is gone: another attempt may go on."""


@contextmanager
def connected(stop: StopSignal) -> Iterator[None]:
    """Ray, to which the job's own environment leads."""
    os.environ.update(ENVIRONMENT)
    import ray

    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except ConnectionError as error:  # the head died while this process started
        raise ClusterLostError(f"{type(error).__name__}: {error}") from error
    stop.listen()  # Ray takes SIGTERM for itself
    try:
        yield
    except Exception as error:
        if (lost := _loss_below(error)) is not None:
            raise ClusterLostError(f"{type(lost).__name__}: {lost}") from error
        raise
    finally:
        ray.shutdown()


def _loss_below(error: BaseException | None) -> BaseException | None:
    """The error among its causes that says that Ray, or a process of its own, is gone."""
    from ray.exceptions import NodeDiedError, RayActorError, RaySystemError, RpcError

    losses: tuple[type[BaseException], ...] = (
        NodeDiedError,
        RayActorError,
        RaySystemError,
        RpcError,
    )
    while error is not None:
        if isinstance(error, losses):
            return error
        error = error.__cause__ or error.__context__
    return None


def bundle(need: ResourcesConfig) -> dict[str, float]:
    """What one worker reserves, by Ray's names."""
    found: dict[str, float] = {"CPU": need.cpus_per_worker}
    if need.gpus_per_worker:
        found["GPU"] = need.gpus_per_worker
    if need.accelerator_type is not None:
        found[f"accelerator_type:{need.accelerator_type}"] = 0.001
    return found
