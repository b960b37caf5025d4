"""Convolutions: one layer, and the route by which it is computed.

All routes compute the same. On a CPU two of them are faster than PyTorch's convolution where they
apply: `unfolded` for images of few channels, `frequency` for the primary capsules of the usual
nets; everything else is `torch.nn.functional.conv2d`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from capsmodel.convolution import frequency, unfolded


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` that takes the fastest route; the features may come channels last.

    Attributes:
        relu: Whether a ReLU follows, which here costs no memory of its own.
    """

    def __init__(self, *args: Any, relu: bool = False, **kwargs: Any) -> None:
        """A layer with the arguments of `torch.nn.Conv2d`."""
        super().__init__(*args, **kwargs)
        self.relu = relu

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = product_dtype(input)
        if unfolded.applies(self, input, dtype):
            return unfolded.convolve(self, input, dtype)
        if frequency.applies(self, input, dtype):
            return frequency.convolve(self, input, dtype)
        maps: Tensor = super()._conv_forward(input, weight, bias)
        return maps.relu_() if self.relu else maps

    def extra_repr(self) -> str:
        """The layer's settings, as `print` shows them."""
        settings: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return settings + (", relu=True" if self.relu else "")


def product_dtype(images: Tensor) -> torch.dtype:
    """The dtype in which a convolution of these images is multiplied: autocast's, or their own."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
