"""Which reason an exception stands for."""

import pytest
import torch

from capsmodel.checkpoint import BadCheckpointError
from capsmodel.datasets import DataCorruptError, DataMissingError
from capsmodel.distributed import RankFailedError
from capsmodel.divergence import DivergedError
from capsmodel.training_state import IncompatibleStateError
from workers.attempt import Reason
from workers.failures import classify, failed
from workers.tracking import note_tracking


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DivergedError("margin loss", 7), Reason.DIVERGED),
        (torch.OutOfMemoryError("CUDA out of memory"), Reason.OUT_OF_MEMORY),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (DataMissingError("no mnist"), Reason.DATA_MISSING),
        (DataCorruptError("sha256"), Reason.DATA_MISSING),
        (BadCheckpointError("sha256"), Reason.BAD_CHECKPOINT),
        (IncompatibleStateError("another architecture"), Reason.BAD_CHECKPOINT),
        (RankFailedError("rank 1 failed"), Reason.WORKER_LOST),
        (torch.distributed.DistBackendError("closed"), Reason.WORKER_LOST),
        (torch.distributed.DistNetworkError("refused"), Reason.WORKER_LOST),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"),
            Reason.WORKER_LOST,
        ),
        (RuntimeError("shape mismatch"), Reason.ERROR),
        (ZeroDivisionError(), Reason.ERROR),
        (KeyError("x"), Reason.ERROR),
    ],
)
def test_each_error_has_a_reason(error: Exception, reason: Reason) -> None:
    assert classify(error) is reason


def test_the_real_failure_to_allocate_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert classify(caught.value) is Reason.OUT_OF_MEMORY


def test_a_failed_result_says_what_mlflow_lacks() -> None:
    error = KeyError("x")
    assert failed(error, "KeyError: 'x'").tracking == "complete"
    note_tracking(error, "complete")
    assert failed(error, "KeyError: 'x'").tracking == "complete"
    note_tracking(error, "incomplete: 2 uploads are missing")
    result = failed(error, "KeyError: 'x'")
    assert (result.outcome, result.reason) == ("failed", Reason.ERROR)
    assert result.tracking == "incomplete: 2 uploads are missing"
