"""Where bf16 is allowed and where it is not: two contexts around autocast."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which bf16 rounds the products of convolutions and fully connected layers.

    With `"fp32"` the context changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which autocast is off: capsules, routing and losses run in it.

    Agreement is summed over hundreds of votes; eight bits of mantissa lose the small ones.
    """
    return torch.autocast(device.type, enabled=False)
