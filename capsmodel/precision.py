"""Where rounding is allowed and where it is not: contexts for products, capsules and losses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which bf16 rounds the products of convolutions and fully connected layers.

    With `"fp32"` the context changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def exact_fp32(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context in which `"fp32"` means fp32 on a GPU too, forward and backward.

    PyTorch lets cuDNN round the operands of fp32 convolutions to TF32, ten bits of mantissa. On a
    CPU and with `"bf16"` the context changes nothing.
    """
    if device.type != "cuda" or precision != "fp32":
        yield
        return
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which autocast is off: capsules, routing and losses run in it.

    Agreement is summed over hundreds of votes; eight bits of mantissa lose the small ones.
    """
    return torch.autocast(device.type, enabled=False)
