"""The numbers that change from step to step, as tensors on a GPU.

A CUDA graph keeps every number with which an operation was called, but reads a tensor anew each
time; so a step's own number and Adam's learning rate lie in tensors. To set them waits for nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepScalars:
    """Learning rate and number of the step under way.

    Attributes:
        learning_rate: fp32, a scalar. All steps on a GPU read it, in a graph or not, so that both
            round it alike.
        number: int64, a scalar; the first step is 1.
    """

    def __init__(self, device: torch.device) -> None:
        self.learning_rate = torch.zeros((), device=device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)

    def set(self, learning_rate: float, number: int) -> None:
        """Say what the next step is."""
        self.learning_rate.fill_(learning_rate)
        self.number.fill_(number)

    @contextmanager
    def leading(self, optimizer: torch.optim.Adam) -> Iterator[None]:
        """Context in which fused Adam reads its learning rate here, and may be recorded.

        Outside of it the optimizer's settings are plain numbers, as they stand in its states.
        """
        groups = optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        recorded = self.number.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in groups:
            group.update(lr=self.learning_rate, capturable=recorded)
        try:
            yield
        finally:
            for group, (learning_rate, capturable) in zip(groups, before, strict=True):
                group.update(lr=learning_rate, capturable=capturable)
