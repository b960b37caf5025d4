"""A trial whose process is killed while it tells of an epoch; run in processes of its own."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from workers.search.trainable import EPOCH, TrialOrder
from workers.search.trial import perform


def perform_and_die(order: TrialOrder, storage: Path, die_at: int) -> None:
    """Perform until an epoch is told; then the process is gone, as the kernel would end it."""
    torch.set_num_threads(1)

    def tell(report: dict[str, Any]) -> None:
        if report[EPOCH] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    perform(order, storage, tell)
