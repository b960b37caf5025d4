"""What an exception leaves: a failed result, with one of the closed set of reasons."""

import torch

from capsmodel.checkpoint import BadCheckpointError
from capsmodel.datasets import DataCorruptError, DataMissingError
from capsmodel.distributed import RankFailedError
from capsmodel.divergence import DivergedError
from capsmodel.training_state import IncompatibleStateError
from workers.attempt import Reason, Result, VersionMismatchError
from workers.tracking import tracking_of


class StorageDiffersError(RuntimeError):
    """A worker does not find the checkpoint that the first worker has found whole."""


_REASONS: list[tuple[type[BaseException], Reason]] = [
    (DivergedError, Reason.DIVERGED),
    (torch.OutOfMemoryError, Reason.OUT_OF_MEMORY),
    (MemoryError, Reason.OUT_OF_MEMORY),
    (DataMissingError, Reason.DATA_MISSING),
    (DataCorruptError, Reason.DATA_MISSING),
    (BadCheckpointError, Reason.BAD_CHECKPOINT),
    (IncompatibleStateError, Reason.BAD_CHECKPOINT),
    (VersionMismatchError, Reason.VERSION_MISMATCH),
    # What a worker meets when another one is gone.
    (RankFailedError, Reason.WORKER_LOST),
    (torch.distributed.DistError, Reason.WORKER_LOST),
    (StorageDiffersError, Reason.WORKER_LOST),
]


def classify(error: BaseException) -> Reason:
    """The reason for a failed attempt; `error` where nothing more is known."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return Reason.OUT_OF_MEMORY  # the CPU allocator of PyTorch has no class of its own
    if isinstance(error, RuntimeError) and "gloo/transport" in str(error):
        return Reason.WORKER_LOST  # nor have the connections between workers
    return Reason.ERROR


def failed(error: BaseException, evidence: str) -> Result:
    """The result of an attempt that an exception has ended."""
    return Result(
        outcome="failed",
        reason=classify(error),
        evidence=evidence[:1000],
        tracking=tracking_of(error),
    )
