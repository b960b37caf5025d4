"""Deterministic mode: the same bits at every run on the same machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Context in which PyTorch uses only deterministic algorithms; afterwards as it was before.

    An operation that has none raises a RuntimeError that names it. Outside deterministic mode
    nothing changes.
    """
    if not wanted:
        yield
        return
    was_enabled = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmarked = torch.backends.cudnn.benchmark
    # cuBLAS reads it when it first multiplies in this process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_enabled, warn_only=warned_only)
        torch.backends.cudnn.benchmark = benchmarked
